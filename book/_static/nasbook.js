/* The widget manager asks for MathJax 2's queue when it typesets a label; the page has MathJax 3. */
document.addEventListener("DOMContentLoaded", function () {
  window.MathJax = window.MathJax || {};
  window.MathJax.Hub = window.MathJax.Hub || {
    Queue: function (call) {
      const element = call && call[2];
      if (element && window.MathJax.typesetPromise) {
        window.MathJax.typesetPromise([element]);
      }
    },
  };
});
