"use strict";
for (const graph of document.querySelectorAll("section.graph")) {
  const details = graph.querySelector(".details");
  const select = (letter, byHand) => {
    for (const one of graph.querySelectorAll("[data-kind]")) {
      const mine = one.dataset.kind === letter;
      if (one.matches("article")) one.hidden = !mine;
      else {
        one.classList.toggle("selected", mine);
        one.setAttribute("aria-pressed", String(mine));
      }
    }
    // Where the details stand below the drawing, a choice would change something out of sight.
    if (byHand && details.getBoundingClientRect().top > window.innerHeight * 0.7) {
      details.scrollIntoView({ behavior: "smooth", block: "start" });
    }
  };
  graph.addEventListener("click", (event) => {
    const one = event.target.closest(".cell, .piece");
    if (one) select(one.dataset.kind, true);
  });
  graph.addEventListener("keydown", (event) => {
    const one = event.target.closest(".piece");
    if (one && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      select(one.dataset.kind, true);
    }
  });
  const first = graph.querySelector("article.kind");
  if (first) select(first.dataset.kind, false);
}
