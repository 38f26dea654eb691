// One position for the players of a recording: whichever starts stops the others and goes on from where they were;
// the ribbon above them shows the position and sets it. Without this script each player works by itself.
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
  const go = (time) => {
    position = Math.min(Math.max(time, 0), Number(ribbons[0].dataset.seconds));
    current.currentTime = position;
    show();
  };
  const start = (player) => {
    if (player !== current) { current.pause(); current = player; player.currentTime = position; }
  };

  for (const player of players) {
    player.addEventListener("play", () => start(player));
    player.addEventListener("timeupdate", () => { if (player === current) { position = player.currentTime; show(); } });
    player.addEventListener("seeking", () => { if (player === current) { position = player.currentTime; show(); } });
  }
  for (const ribbon of ribbons) {
    const { left, right, seconds } = ribbon.dataset;
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
