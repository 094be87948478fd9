(function () {
  "use strict";
  var slides = Array.prototype.slice.call(document.querySelectorAll(".slide")), now = 0;
  var bar = document.querySelector(".progress");
  function fit() {
    document.body.style.setProperty("--scale", Math.min(innerWidth / 1280, innerHeight / 720));
  }
  function show(number) {
    slides[now].classList.remove("now");
    now = Math.max(0, Math.min(slides.length - 1, number));
    slides[now].classList.add("now");
    bar.style.setProperty("--done", 100 * now / (slides.length - 1) + "%");
    bar.setAttribute("aria-valuenow", now + 1);
    scrollTo(0, 0);
  }
  function turn(number) {
    show(number);
    try { history.replaceState(null, "", "#" + (now + 1)); } catch (error) { /* the address stays as it is */ }
  }
  var keys = {
    ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Backspace: -1,
    Home: -slides.length, End: slides.length
  };
  addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.closest("button, a")) return;
    if (event.key in keys) { event.preventDefault(); turn(now + keys[event.key]); }
    else if (event.key === "n") document.body.classList.toggle("noted");
    else if (event.key === "f" && document.documentElement.requestFullscreen) document.documentElement.requestFullscreen();
  });
  document.getElementById("back").addEventListener("click", function () { turn(now - 1); });
  document.getElementById("on").addEventListener("click", function () { turn(now + 1); });
  addEventListener("hashchange", function () { show((parseInt(location.hash.slice(1), 10) || 1) - 1); });
  addEventListener("resize", fit);
  document.body.classList.add("deck");
  fit();
  show((parseInt(location.hash.slice(1), 10) || 1) - 1);
})();
