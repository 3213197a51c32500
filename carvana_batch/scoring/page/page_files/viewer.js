"use strict";
// The viewer: shows one image at a time, as photo, truth, prediction or errors, with zooming and panning.
(() => {
  const MAX_SCALE = 32;
  const PAN_STEP = 0.15; // fraction of the stage, per arrow key

  const element = (id) => document.getElementById(id);
  const viewer = element("viewer");
  const stage = element("stage");
  const canvas = stage.querySelector("canvas");
  const context = canvas.getContext("2d");
  const layers = [...viewer.querySelectorAll("[name=layer]")];
  const cards = [...document.querySelectorAll(".card")];
  const colour = (name) => getComputedStyle(viewer).getPropertyValue(name).trim();

  // x and y: the position in the picture that is at the centre of the stage. scale: device pixels per picture pixel.
  const view = { number: 0, picture: null, layers: null, scale: 1, x: 0, y: 0, fitted: true };

  async function open(number) {
    const source = element(`picture-${number}`);
    if (!source) return; // the page has not loaded that far yet
    const picture = JSON.parse(source.textContent);
    Object.assign(view, { number, picture, layers: null });
    describe(picture);
    stage.setAttribute("aria-busy", "true");
    if (!viewer.open) viewer.showModal();
    fit();
    const loaded = await load(picture);
    if (view.picture !== picture) return; // another one was opened meanwhile
    view.layers = loaded;
    redraw();
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
    return { get: (name) => (painted[name] ??= paint[name]()), mark: markErrors(width, height, kinds) };
  }

  async function decode(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  }

  function makeCanvas(width, height, willReadFrequently = false) {
    const made = document.createElement("canvas");
    made.width = width;
    made.height = height;
    return made.getContext("2d", { willReadFrequently });
  }

  function paintPhoto(width, height, photo) {
    const painter = makeCanvas(width, height);
    painter.fillStyle = photo ? "#fff" : "#f5f5f5";
    painter.fillRect(0, 0, width, height);
    if (photo) painter.drawImage(photo, 0, 0, width, height);
    return painter;
  }

  // A canvas with each pixel in the colour of its kind: [red, green, blue, alpha], or null for transparent.
  function paintKinds(width, height, kinds, colours) {
    const painter = makeCanvas(width, height);
    const image = painter.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const values = new Uint32Array(new Uint8Array(colours.flatMap((colour) => colour ?? [0, 0, 0, 0])).buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = values[kinds[i]];
    painter.putImageData(image, 0, 0);
    return painter.canvas;
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

  // Returns a function that draws the wrong pixels in cells of 2 ** level pixels. A cell has the colour of the more
  // frequent mistake in it, so that even a single wrong pixel shows when the picture is reduced.
  function markErrors(width, height, kinds) {
    const colours = [null, [...channels(colour("--missed")), 255], [...channels(colour("--invented")), 255]];
    const counts = [new Uint32Array(kinds.length), new Uint32Array(kinds.length)];
    for (let i = 0; i < kinds.length; i++) if (kinds[i] === 1 || kinds[i] === 2) counts[kinds[i] - 1][i] = 1;
    const levels = [{ width, height, counts }];
    return (level) => {
      while (levels.length <= level) levels.push(halve(levels.at(-1)));
      const cells = levels[level];
      cells.canvas ??= paintKinds(cells.width, cells.height, moreFrequent(cells.counts), colours);
      return cells.canvas;
    };
  }

  function moreFrequent([missed, invented]) {
    const kinds = new Uint8Array(missed.length);
    for (let i = 0; i < kinds.length; i++) kinds[i] = invented[i] > missed[i] ? 2 : missed[i] > 0 ? 1 : 0;
    return kinds;
  }

  function halve({ width, height, counts }) {
    const columns = Math.ceil(width / 2);
    const rows = Math.ceil(height / 2);
    const halves = counts.map((count) => {
      const half = new Uint32Array(columns * rows);
      for (let y = 0, i = 0; y < height; y++) {
        const row = (y >> 1) * columns;
        for (let x = 0; x < width; x++, i++) half[row + (x >> 1)] += count[i];
      }
      return half;
    });
    return { width: columns, height: rows, counts: halves };
  }

  function channels(hex) {
    return [1, 3, 5].map((index) => parseInt(hex.slice(index, index + 2), 16));
  }

  // Drawing and panning.

  let frame = 0;
  function redraw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  }

  function draw() {
    const { picture, scale } = view;
    stage.toggleAttribute("aria-busy", !view.layers);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const name = layers.find((layer) => layer.checked).value;
    const percent = `${Math.round(100 * scale)} %`;
    element("zoom-level").textContent = percent;
    canvas.setAttribute("aria-label", `${name} of ${picture.image} at ${percent}`);
    if (!view.layers) return;
    const left = Math.round(canvas.width / 2 - view.x * scale);
    const top = Math.round(canvas.height / 2 - view.y * scale);
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(view.layers.get(name), left, top, picture.width * scale, picture.height * scale);
    if (name !== "errors") return;
    const level = Math.max(Math.ceil(-Math.log2(scale)), 0);
    const marks = view.layers.mark(level);
    const cell = scale * 2 ** level; // at least one device pixel, so that no cell disappears
    context.imageSmoothingEnabled = false;
    context.drawImage(marks, left, top, marks.width * cell, marks.height * cell);
  }

  function fit() {
    const { width, height } = view.picture;
    measure();
    const scale = Math.min(canvas.width / width, canvas.height / height);
    Object.assign(view, { scale: scale > 2 ? Math.floor(scale) : scale, x: width / 2, y: height / 2, fitted: true });
    redraw();
  }

  function measure() {
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(stage.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(stage.clientHeight * ratio));
  }

  // Zooms around (x, y), in device pixels from the centre of the stage.
  function zoom(factor, x = 0, y = 0) {
    const { width, height } = view.picture;
    const minScale = Math.min(1, canvas.width / width, canvas.height / height);
    const scale = Math.min(Math.max(view.scale * factor, minScale), MAX_SCALE);
    view.x += x / view.scale - x / scale;
    view.y += y / view.scale - y / scale;
    view.scale = scale;
    pan(0, 0);
  }

  function pan(x, y) {
    const clamp = (centre, length, available) => {
      const half = Math.min(available / view.scale, length) / 2;
      return Math.min(Math.max(centre, half), length - half);
    };
    view.x = clamp(view.x + x / view.scale, view.picture.width, canvas.width);
    view.y = clamp(view.y + y / view.scale, view.picture.height, canvas.height);
    view.fitted = false;
    redraw();
  }

  function showSpot() {
    const [left, top, width, height] = view.picture.spot;
    view.scale = Math.max(1, Math.min(MAX_SCALE, Math.floor(Math.min(canvas.width / width, canvas.height / height))));
    view.x = left + width / 2;
    view.y = top + height / 2;
    pan(0, 0);
  }

  function choose(layer) {
    if (layer.disabled) return;
    layer.checked = true;
    redraw();
  }

  const turn = (steps) => open((view.number + steps + cards.length) % cards.length);

  // Keys, pointers, buttons.

  // Zoom to the next power of two, at which all pixels of the picture have the same size.
  const zoomIn = (x, y) => zoom(2 ** Math.floor(Math.log2(view.scale) + 1.01) / view.scale, x, y);
  const zoomOut = () => zoom(2 ** Math.ceil(Math.log2(view.scale) - 1.01) / view.scale);
  const keys = {
    "+": () => zoomIn(),
    "=": () => zoomIn(),
    "-": zoomOut,
    0: fit,
    w: showSpot,
    n: () => turn(1),
    p: () => turn(-1),
  };
  layers.forEach((layer, index) => (keys[index + 1] = () => choose(layer)));
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = event.target === stage && arrows[event.key];
    const act = arrow
      ? () => pan(arrow[0] * PAN_STEP * canvas.width, arrow[1] * PAN_STEP * canvas.height)
      : keys[event.key.toLowerCase()];
    if (!act) return;
    act();
    event.preventDefault();
  });

  // The position of an event, in device pixels from the centre of the stage.
  function locate(event) {
    const box = stage.getBoundingClientRect();
    const ratio = canvas.width / box.width;
    return [(event.clientX - box.left) * ratio - canvas.width / 2, (event.clientY - box.top) * ratio - canvas.height / 2];
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode ? 16 : 1;
    zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), ...locate(event));
  }, { passive: false });

  const touches = new Map();
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    touches.set(event.pointerId, locate(event));
  });
  stage.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    const now = locate(event);
    touches.set(event.pointerId, now);
    const other = [...touches].find(([pointer]) => pointer !== event.pointerId)?.[1];
    if (other) {
      const distance = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
      zoom(distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    const share = other ? 0.5 : 1;
    pan((before[0] - now[0]) * share, (before[1] - now[1]) * share);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => touches.delete(event.pointerId));
  }
  stage.addEventListener("dblclick", (event) => zoomIn(...locate(event)));

  const buttons = {
    "zoom-in": () => zoomIn(),
    "zoom-out": zoomOut,
    "zoom-fit": fit,
    "zoom-spot": showSpot,
    "viewer-before": () => turn(-1),
    "viewer-after": () => turn(1),
    "viewer-close": () => viewer.close(),
  };
  for (const [id, act] of Object.entries(buttons)) element(id).addEventListener("click", act);
  for (const layer of layers) layer.addEventListener("change", redraw);
  for (const card of cards) card.addEventListener("click", () => open(Number(card.dataset.picture)));
  viewer.addEventListener("close", () => {
    touches.clear();
    view.layers = null; // frees tens of megabytes
  });
  new ResizeObserver(() => {
    if (!viewer.open) return;
    if (view.fitted) return fit();
    measure();
    pan(0, 0);
  }).observe(stage);
})();
