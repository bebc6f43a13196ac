"use strict";
// Fetches the OpenAPI document, asks for the endpoint's token if it has one, and lets Swagger UI show
// the document. The token is kept by the open page alone.
const message = document.getElementById("message");
const form = document.getElementById("token-form");
const field = document.getElementById("token");

function say(text) {
  message.textContent = text;
  message.hidden = !text;
}

async function load(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("openapi.json", { headers });
  const content = await response.json();
  if (response.status === 401) {
    form.hidden = false;
    field.focus();
    say(token ? content.error : "");
    return;
  }
  if (!response.ok) {
    say(content.error);
    return;
  }
  form.hidden = true;
  say("");
  document.title = content.info.title;
  const ui = SwaggerUIBundle({
    // Beside this page, whatever path a proxy has put before it.
    spec: { ...content, servers: [{ url: new URL(".", window.location.href).href.replace(/\/$/, "") }] },
    dom_id: "#swagger-ui",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    tryItOutEnabled: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    validatorUrl: null,
    onComplete: () => {
      if (token) ui.preauthorizeApiKey("token", token);
      ui.layoutActions.show(["operations", "default", "predict"], true);
    },
  });
}

function start(token) {
  load(token).catch((error) => say(`The endpoint does not answer (${error.message}).`));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start(field.value.trim());
});
start("");
