"""Everything comes from settings.ini, so that there is one place to change."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

ini = ConfigParser(delimiters=["="]); ini.read("settings.ini", encoding="utf8")
cfg = ini["DEFAULT"]
setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0",
    long_description=Path("README.md").read_text(encoding="utf8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    classifiers=["Development Status :: 3 - Alpha", f"Intended Audience :: {cfg['audience']}", f"Topic :: {cfg['topic']}",
                 f"Natural Language :: {cfg['language']}", "Programming Language :: Python :: 3.11"],
    packages=find_packages(include=[cfg["lib_path"]]), package_data={cfg["lib_path"]: ["static/*", "static/**/*"]}, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "papermill.engine": ["lmac-piq=lmac_piq.engine:FileSocketEngine"],
                  "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]})
