// Everything is on the page without this: it only makes the points of a panel one stop of the Tab key, between which
// the arrow keys move, and unfolds sections when a link leads to them.
for (const panel of document.querySelectorAll(".panel")) {
  const points = [...panel.querySelectorAll(".point")];
  const stop = (point) => points.forEach((each) => each.setAttribute("tabindex", each === point ? 0 : -1));
  stop(points[0]);
  panel.addEventListener("focusin", (event) => stop(event.target.closest(".point")));
  panel.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = step && points[points.indexOf(document.activeElement) + step];
    if (step) event.preventDefault();
    if (next) next.focus();
  });
}
const unfold = () => {
  const folded = location.hash && document.querySelector(location.hash + " details");
  if (folded) folded.open = true;
};
addEventListener("hashchange", unfold);
unfold();
