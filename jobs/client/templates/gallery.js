"use strict";
const root = document.documentElement;
const $ = (id) => document.getElementById(id);

// Light and dark: what the system says, until the reader chooses.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
const showTheme = () => $("theme").setAttribute("aria-pressed", String(isDark()));
$("theme").hidden = false;
$("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
prefersDark.addEventListener("change", showTheme);
showTheme();

// The viewer goes through the pictures of the pairs that the filter leaves.
const viewer = $("viewer");
const large = $("large");
const stage = large.parentElement;
let current = null;
const pairOf = (zoom) => zoom.closest("article");
const shown = () => [...document.querySelectorAll(".zoom")].filter(
  (zoom) => getComputedStyle(pairOf(zoom)).display !== "none");

function fit() {
  const small = current.querySelector("img");
  const room = Math.min(stage.clientWidth / small.naturalWidth,
                        stage.clientHeight / small.naturalHeight);
  // Hard pixels are all of one size only if they are enlarged a whole number of times; of too
  // large ones no picture is seen any more.
  const hard = small.classList.contains("pixels") && room >= 1;
  const factor = hard ? Math.min(Math.floor(room), 14) : Math.min(room, 6);
  large.width = Math.max(1, Math.round(small.naturalWidth * factor));
  large.height = Math.max(1, Math.round(small.naturalHeight * factor));
}

function show(zoom) {
  current = zoom;
  const small = zoom.querySelector("img");
  large.src = small.src;
  large.alt = small.alt;
  large.className = small.className;
  const all = shown();
  const name = pairOf(zoom).querySelector("h2").textContent;
  $("caption").textContent =
    `${name}: ${zoom.dataset.role} (${all.indexOf(zoom) + 1} of ${all.length})`;
  if (!viewer.open) viewer.showModal();
  fit();
}

function step(by) {
  const all = shown();
  show(all[(all.indexOf(current) + by + all.length) % all.length]);
}

function stepPair(by) {
  const same = shown().filter(
    (zoom) => zoom.dataset.role === current.dataset.role || zoom === current);
  show(same[(same.indexOf(current) + by + same.length) % same.length]);
}

for (const zoom of document.querySelectorAll(".zoom")) {
  zoom.addEventListener("click", () => show(zoom));
}
const moves = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => stepPair(-1),
  ArrowDown: () => stepPair(1),
};
viewer.addEventListener("keydown", (event) => {
  if (event.key in moves) {
    event.preventDefault();
    moves[event.key]();
  }
});
viewer.addEventListener("close", () => current.focus());
$("previous").addEventListener("click", moves.ArrowLeft);
$("next").addEventListener("click", moves.ArrowRight);
$("close").addEventListener("click", () => viewer.close());
stage.addEventListener("click", (event) => {
  if (event.target === stage) viewer.close();
});
addEventListener("resize", () => {
  if (viewer.open) fit();
});
