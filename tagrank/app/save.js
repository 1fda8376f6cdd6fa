// Saves a file that Python made. It comes as base64, and no address of the server ever had it.
watch("value", () => {
  if (!props.value || !props.value.content) return;
  const bytes = Uint8Array.from(atob(props.value.content), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: props.value.type }));
  link.download = props.value.name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
