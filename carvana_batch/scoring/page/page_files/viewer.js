"use strict";
// The viewer: shows one image at a time, as photo, truth, prediction or errors.
(() => {
  const { decode, makeCanvas, paintKinds, channels } = stages;
  const element = (id) => document.getElementById(id);
  const viewer = element("viewer");
  const canvas = viewer.querySelector("canvas");
  const layers = [...viewer.querySelectorAll("[name=layer]")];
  const cards = [...document.querySelectorAll(".card")];
  const colour = (name) => getComputedStyle(viewer).getPropertyValue(name).trim();

  const state = { number: 0, picture: null, layers: null };
  const stage = stages.makeStage(element("stage"), draw);

  async function open(number) {
    const source = element(`picture-${number}`);
    if (!source) return; // the page has not loaded that far yet
    const picture = JSON.parse(source.textContent);
    Object.assign(state, { number, picture, layers: null });
    describe(picture);
    element("stage").setAttribute("aria-busy", "true");
    if (!viewer.open) {
      viewer.showModal();
      element("stage").focus();
    }
    stage.show(picture.width, picture.height);
    const loaded = await load(picture);
    if (state.picture !== picture) return; // another one was opened meanwhile
    state.layers = loaded;
    stage.redraw();
  }

  function describe(picture) {
    const count = (pixels) => pixels.toLocaleString("en");
    viewer.querySelector("bdi").textContent = picture.image;
    element("viewer-dice").textContent = `Dice ${picture.dice.toFixed(4)}`;
    element("viewer-missed").textContent = `${count(picture.missed)} px missed`;
    element("viewer-invented").textContent = `${count(picture.invented)} px invented`;
    element("viewer-note").textContent = picture.note;
    const photo = layers[0];
    photo.disabled = !picture.photo;
    if (photo.disabled && photo.checked) layers.at(-1).checked = true;
  }

  // Layers: what is drawn for each choice, in the size of the picture; each is made when it is first needed.

  async function load({ width, height, masks, photo }) {
    const [maskImage, photoImage] = await Promise.all([decode(masks), photo && decode(photo)]);
    const reader = makeCanvas(width, height, true);
    reader.drawImage(maskImage, 0, 0);
    const { data } = reader.getImageData(0, 0, width, height);
    const kinds = new Uint8Array(width * height); // 1: in the true mask, 2: in the predicted one, 3: in both
    for (let i = 0; i < kinds.length; i++) kinds[i] = (data[4 * i] >> 7) | ((data[4 * i + 1] >> 7) << 1);
    const paint = {
      photo: () => paintPhoto(width, height, photoImage).canvas,
      truth: () => veilOutside(width, height, photoImage, kinds, 1),
      prediction: () => veilOutside(width, height, photoImage, kinds, 2),
      errors: () => paintBackground(width, height, photoImage, kinds),
    };
    const painted = {};
    const errors = [colour("--missed"), colour("--invented")].map((hex) => [...channels(hex), 255]);
    const marks = stages.makeMarks(width, height, kinds, errors);
    return { get: (name) => (painted[name] ??= paint[name]()), marks };
  }

  function paintPhoto(width, height, photo) {
    const painter = makeCanvas(width, height);
    painter.fillStyle = photo ? "#fff" : "#f5f5f5";
    painter.fillRect(0, 0, width, height);
    if (photo) painter.drawImage(photo, 0, 0, width, height);
    return painter;
  }

  // The photo, veiled outside one of the masks: bit 1 is the true mask, 2 the predicted one.
  function veilOutside(width, height, photo, kinds, bit) {
    const veil = [...channels(colour("--veil")), photo ? 225 : 255];
    const painter = paintPhoto(width, height, photo);
    painter.drawImage(paintKinds(width, height, kinds, [0, 1, 2, 3].map((kind) => (kind & bit ? null : veil))), 0, 0);
    return painter.canvas;
  }

  // The photo in pale grey, so that both colours stand out even from a dark car; without a photo, the part that
  // both masks contain in grey.
  function paintBackground(width, height, photo, kinds) {
    const painter = paintPhoto(width, height, photo);
    if (!photo) {
      painter.drawImage(paintKinds(width, height, kinds, [null, null, null, [205, 205, 205, 255]]), 0, 0);
      return painter.canvas;
    }
    painter.globalCompositeOperation = "saturation";
    painter.fillStyle = "#808080";
    painter.fillRect(0, 0, width, height);
    painter.globalCompositeOperation = "source-over";
    painter.fillStyle = "rgb(255 255 255 / 50%)";
    painter.fillRect(0, 0, width, height);
    return painter.canvas;
  }

  function draw(context, place) {
    const { left, top, scale, width, height } = place;
    element("stage").toggleAttribute("aria-busy", !state.layers);
    const name = layers.find((layer) => layer.checked).value;
    const percent = `${Math.round(100 * scale)} %`;
    element("zoom-level").textContent = percent;
    canvas.setAttribute("aria-label", `${name} of ${state.picture.image} at ${percent}`);
    if (!state.layers) return;
    context.drawImage(state.layers.get(name), left, top, width * scale, height * scale);
    if (name === "errors") stages.drawMarks(context, state.layers.marks, place);
  }

  function choose(layer) {
    if (layer.disabled) return;
    layer.checked = true;
    stage.redraw();
  }

  // To the next picture of this page; the page of a single picture has links to its neighbours.
  const neighbours = { "-1": element("picture-before"), 1: element("picture-after") };
  function turn(steps) {
    if (neighbours[steps]) neighbours[steps].click();
    else open((state.number + steps + cards.length) % cards.length);
  }
  const showSpot = () => stage.showWindow(state.picture.spot);

  const keys = {
    "+": stage.zoomIn,
    "=": stage.zoomIn,
    "-": stage.zoomOut,
    0: stage.fit,
    w: showSpot,
    n: () => turn(1),
    p: () => turn(-1),
  };
  layers.forEach((layer, index) => (keys[index + 1] = () => choose(layer)));

  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    act();
    event.preventDefault();
  });

  const buttons = {
    "zoom-in": stage.zoomIn,
    "zoom-out": stage.zoomOut,
    "zoom-fit": stage.fit,
    "zoom-spot": showSpot,
    "viewer-before": () => turn(-1),
    "viewer-after": () => turn(1),
    "viewer-close": () => viewer.close(),
  };
  for (const [id, act] of Object.entries(buttons)) element(id).addEventListener("click", act);
  for (const layer of layers) layer.addEventListener("change", stage.redraw);
  for (const card of cards) card.addEventListener("click", () => open(Number(card.dataset.picture)));
  viewer.addEventListener("close", () => {
    stage.letGo();
    state.layers = null; // frees tens of megabytes
  });
  if (document.querySelector("[data-open]")) addEventListener("load", () => open(0));
})();
