"use strict";
// What a heat map's token is worth: under the mouse, where a finger touches, and by the arrow keys.

{
  const bubble = document.createElement("div");
  bubble.className = "tooltip";
  bubble.setAttribute("role", "status");
  let pointed = null;

  for (const line of document.querySelectorAll(".tokens")) {
    for (const token of line.children) {
      token.dataset.value = token.title;
      token.removeAttribute("title"); // the browser's own bubble would stand beside ours
    }
    line.tabIndex = 0;
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", `${line.dataset.name}: arrow keys read each token's value`);
    line.addEventListener("keydown", (event) => press(event, line));
    line.addEventListener("blur", leave);
    line.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
    line.addEventListener("pointerover", (event) => event.target.dataset.value && show(event.target));
  }
  // Also what ends a touch: a tap elsewhere.
  document.addEventListener("pointerdown", (event) => (event.target.dataset?.value ? show(event.target) : leave()));
  addEventListener("resize", leave);

  function press(event, line) {
    const tokens = [...line.children];
    const last = tokens.length - 1;
    const at = tokens.indexOf(pointed);
    const to = { ArrowLeft: at < 0 ? last : at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") leave();
    if (to === undefined) return;
    event.preventDefault();
    show(tokens[Math.max(0, Math.min(last, to))]);
  }

  function leave() {
    pointed?.classList.remove("pointed");
    pointed = null;
    bubble.remove();
  }

  function show(token) {
    leave();
    pointed = token;
    token.classList.add("pointed");
    bubble.textContent = `“${token.textContent.trim() || token.textContent}” ${token.dataset.value}`;
    document.body.append(bubble);
    const box = token.getClientRects()[0];
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(box.left, width - bubble.offsetWidth - 8));
    bubble.style.transform = `translate(${left + scrollX}px, ${box.bottom + scrollY + 6}px)`;
  }
}
