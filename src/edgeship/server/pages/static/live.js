// Keeps a page usable while its live part is replaced: opened details stay open, and a lost connection is said.
"use strict";

function openDetails(root) {
  return Array.from(root.querySelectorAll("details")).map((part) => part.open);
}

document.addEventListener("htmx:beforeSwap", (event) => {
  const live = document.getElementById("live");
  if (live && event.detail.shouldSwap) live.dataset.open = JSON.stringify(openDetails(live));
  if (live) window.edgeshipOpen = live.dataset.open;
});

document.addEventListener("htmx:afterSwap", () => {
  const live = document.getElementById("live");
  if (!live || !window.edgeshipOpen) return;
  const open = JSON.parse(window.edgeshipOpen);
  const parts = live.querySelectorAll("details");
  if (parts.length !== open.length) return;
  parts.forEach((part, index) => { part.open = open[index]; });
});

function showConnection(lost) {
  const banner = document.getElementById("lost");
  if (banner) banner.hidden = !lost;
}

document.addEventListener("htmx:sendError", () => showConnection(true));
document.addEventListener("htmx:responseError", () => showConnection(true));
document.addEventListener("htmx:afterOnLoad", () => showConnection(false));
