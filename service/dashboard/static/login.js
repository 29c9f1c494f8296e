"use strict";
(() => {
  const form = document.getElementById("form");
  const key = document.getElementById("key");
  const problem = document.getElementById("problem");
  const button = form.querySelector("button");

  button.disabled = false;  // not before: a browser that submits by itself would put the key where it does not belong
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    try {
      const response = await fetch("/v1/session", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ key: key.value.trim() }),
      });
      if (response.ok) {
        window.location.replace("/");
        return;
      }
      if (response.status === 429) {
        problem.textContent = `Too many tries. Wait ${response.headers.get("retry-after")} s, then try again.`;
      } else if (response.status === 403) {
        problem.textContent = (await response.json()).detail;
      } else if (response.status === 401 || response.status === 422) {
        problem.textContent = "This key is not known.";
      } else {
        problem.textContent = `The service answered ${response.status}. Try again in a moment.`;
      }
      key.select();
    } catch {
      problem.textContent = "The service does not answer. Is it running?";
    }
    button.disabled = false;
  });
})();
