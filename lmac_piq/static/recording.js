// One position for the players of a recording: whichever starts stops the others and goes on from where they were;
// the ribbon above them shows the position and sets it. Without this script each player works by itself.

const STARTED = "lmac-piq-started";   // said on the document by whoever starts to play, so that all others stop

for (const section of document.querySelectorAll(".recording")) {
  const players = [...section.querySelectorAll("audio")], ribbons = [...section.querySelectorAll(".ribbon")];  // one ribbon is shown, by width
  if (!players.length) continue;
  let position = 0, current = players[0];

  const show = () => {
    for (const ribbon of ribbons) {
      const { left, right, seconds } = ribbon.dataset, head = ribbon.querySelector("i");
      head.hidden = false;
      head.style.left = `${100 * (Number(left) + (right - left) * position / seconds)}%`;
      ribbon.setAttribute("aria-valuenow", position.toFixed(1));
      ribbon.setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
    }
  };
  const follow = () => { position = current.currentTime; show(); };
  const go = (time) => { current.currentTime = Math.min(Math.max(time, 0), Number(ribbons[0].dataset.seconds)); follow(); };

  for (const player of players) {
    player.addEventListener("play", () => {
      document.dispatchEvent(new CustomEvent(STARTED, { detail: section }));
      if (player === current) return;
      current.pause();
      current = player;
      player.currentTime = position;
    });
    for (const event of ["timeupdate", "seeking"]) player.addEventListener(event, () => { if (player === current) follow(); });
  }
  document.addEventListener(STARTED, ({ detail }) => { if (detail !== section) current.pause(); });

  for (const ribbon of ribbons) {
    const { left, right, seconds } = ribbon.dataset;
    ribbon.classList.add("ready");
    for (const [name, value] of Object.entries({ role: "slider", tabindex: 0, "aria-label": "position in the recording", "aria-valuemin": 0, "aria-valuemax": seconds, "aria-valuenow": 0 })) ribbon.setAttribute(name, value);
    ribbon.addEventListener("click", (event) => {
      const box = ribbon.getBoundingClientRect(), across = (event.clientX - box.left) / box.width;
      go(seconds * (across - left) / (right - left));
    });
    ribbon.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: position - 5, ArrowRight: position + 5, Home: 0, End: Number(seconds) };
      if (event.key in moves) go(moves[event.key]);
      else if (event.key === " ") { if (current.paused) current.play(); else current.pause(); }
      else if (players[event.key - 1]) players[event.key - 1].play();
      else return;
      event.preventDefault();
    });
  }
}
