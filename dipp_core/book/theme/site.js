// Light, dark or as the system says; and code shown or hidden. Every page works without this file.
(function () {
  "use strict";
  var root = document.documentElement;
  function read(key) { try { return localStorage.getItem(key) || ""; } catch (error) { return ""; } }
  function keep(key, value) { try { localStorage.setItem(key, value); } catch (error) { /* not remembered, no harm */ } }
  var settings = [
    { key: "theme", values: ["", "light", "dark"], names: ["theme: system", "theme: light", "theme: dark"], sign: "\u25d0" },
    { key: "code", values: ["", "hidden"], names: ["code: shown", "code: hidden"], sign: "{ }", only: "chapter" }
  ];
  settings.forEach(function (setting) { root.dataset[setting.key] = read(setting.key); });

  function button(setting) {
    var element = document.createElement("button");
    element.type = "button";
    element.className = "setting";
    function show() {
      var name = setting.names[Math.max(0, setting.values.indexOf(root.dataset[setting.key]))];
      element.textContent = setting.sign;
      element.appendChild(document.createElement("span")).textContent = " " + name.split(": ")[1];
      element.setAttribute("aria-label", name);
      element.title = name;
    }
    element.addEventListener("click", function () {
      var next = (setting.values.indexOf(root.dataset[setting.key]) + 1) % setting.values.length;
      root.dataset[setting.key] = setting.values[next];
      keep(setting.key, setting.values[next]);
      show();
    });
    show();
    return element;
  }

  document.addEventListener("DOMContentLoaded", function () {
    var bar = document.querySelector("header.bar");
    settings.forEach(function (setting) {
      if (!setting.only || document.body.classList.contains(setting.only)) bar.appendChild(button(setting));
    });
    var contents = document.getElementById("page-contents");
    if (contents && contents.hidePopover) contents.addEventListener("click", function (event) {
      if (event.target.closest("a") && contents.matches(":popover-open")) contents.hidePopover();
    });
  });
})();
