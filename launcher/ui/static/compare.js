// The slider over two epochs.
"use strict";
(() => {
  const slider = document.getElementById("slider");
  if (!slider) return;
  const show = () => document.querySelectorAll(".over .top").forEach((image) => { image.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; });
  slider.addEventListener("input", show);
  show();
})();
