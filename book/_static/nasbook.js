/* Widgets, without another host. Loaded on every page, before the widget manager. */

/* The manager's icons stand beside its script, not where it would look for them by default. */
window.__jupyter_widgets_assets_path__ = new URL("vendor/widgets/dist/", document.currentScript.src).href;

/* The manager asks for MathJax 2's queue when it typesets a label; the page has MathJax 3. */
document.addEventListener("DOMContentLoaded", function () {
  window.MathJax = window.MathJax || {};
  window.MathJax.Hub = window.MathJax.Hub || {
    Queue: function (call) {
      const element = call && call[2];
      if (element && window.MathJax.typesetPromise) {
        element.classList.add("mathjax_process"); /* the page's text is ignored unless it says so */
        window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise([element]));
      }
    },
  };
});
