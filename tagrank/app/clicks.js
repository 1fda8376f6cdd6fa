// A click on a button with data-do becomes an event for Python, with all data of the button and what is chosen beside it.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  const chosen = element.querySelector("input[type=radio]:checked");
  trigger("click", { ...button.dataset, which: chosen ? chosen.value : "" });
});
