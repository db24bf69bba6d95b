// The theme's labels open the menu and the search on narrow screens by a click alone: here by the keyboard, too.
for (const label of document.querySelectorAll("label.md-header__button[for], label.md-nav__link[for]")) {
  label.tabIndex = 0;
  label.setAttribute("role", "button");
  label.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    label.click();
  });
}
