"use strict";
// A stage shows one picture, with zooming and panning by keys, wheel, mouse and touch; what is drawn, the page says.
const stages = (() => {
  const MAX_SCALE = 32;
  const PAN_STEP = 0.15; // fraction of the stage, per arrow key

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

  // Returns a function that draws pixels of the kinds 1, 2 and so on, which have these colours, in cells of 2 ** level
  // pixels. A cell has the colour of the most frequent kind in it, so that even a single pixel shows when the picture
  // is reduced.
  function makeMarks(width, height, kinds, colours) {
    const counts = colours.map(() => new Uint32Array(kinds.length));
    for (let i = 0; i < kinds.length; i++) {
      if (kinds[i] >= 1 && kinds[i] <= colours.length) counts[kinds[i] - 1][i] = 1;
    }
    const levels = [{ width, height, counts }];
    return (level) => {
      while (levels.length <= level) levels.push(halve(levels.at(-1)));
      const cells = levels[level];
      cells.canvas ??= paintKinds(cells.width, cells.height, mostFrequent(cells.counts), [null, ...colours]);
      return cells.canvas;
    };
  }

  function mostFrequent(counts) {
    const kinds = new Uint8Array(counts[0].length);
    for (let i = 0; i < kinds.length; i++) {
      let most = 0;
      counts.forEach((count, index) => {
        if (count[i] > most) {
          most = count[i];
          kinds[i] = index + 1;
        }
      });
    }
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

  // Draws such marks over a picture at this place of the stage.
  function drawMarks(context, marks, { left, top, scale }) {
    const level = Math.max(Math.ceil(-Math.log2(scale)), 0);
    const cells = marks(level);
    const cell = scale * 2 ** level; // at least one device pixel, so that no cell disappears
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, left, top, cells.width * cell, cells.height * cell);
  }

  function channels(hex) {
    return [1, 3, 5].map((index) => parseInt(hex.slice(index, index + 2), 16));
  }

  // stage: a focusable element with a canvas. draw(context, place): draws the picture at its place, which has left, top
  // and scale in device pixels, and width and height of the picture.
  function makeStage(stage, draw) {
    const canvas = stage.querySelector("canvas");
    const context = canvas.getContext("2d");
    // x and y: the position in the picture that is at the centre of the stage. scale: device pixels per picture pixel.
    const view = { width: 1, height: 1, scale: 1, x: 0, y: 0, fitted: true };

    let frame = 0;
    function redraw() {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        const { width, height, scale } = view;
        const left = Math.round(canvas.width / 2 - view.x * scale);
        const top = Math.round(canvas.height / 2 - view.y * scale);
        context.clearRect(0, 0, canvas.width, canvas.height);
        context.imageSmoothingEnabled = scale < 1;
        context.imageSmoothingQuality = "high";
        draw(context, { left, top, scale, width, height });
      });
    }

    function show(width, height) {
      Object.assign(view, { width, height });
      fit();
    }

    function fit() {
      const { width, height } = view;
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
      const minScale = Math.min(1, canvas.width / view.width, canvas.height / view.height);
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
      view.x = clamp(view.x + x / view.scale, view.width, canvas.width);
      view.y = clamp(view.y + y / view.scale, view.height, canvas.height);
      view.fitted = false;
      redraw();
    }

    function showWindow([left, top, width, height]) {
      const whole = Math.floor(Math.min(canvas.width / width, canvas.height / height));
      view.scale = Math.max(1, Math.min(MAX_SCALE, whole));
      view.x = left + width / 2;
      view.y = top + height / 2;
      pan(0, 0);
    }

    // Zoom to the next power of two, at which all pixels of the picture have the same size.
    const zoomIn = (x, y) => zoom(2 ** Math.floor(Math.log2(view.scale) + 1.01) / view.scale, x, y);
    const zoomOut = () => zoom(2 ** Math.ceil(Math.log2(view.scale) - 1.01) / view.scale);

    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    stage.addEventListener("keydown", (event) => {
      const arrow = arrows[event.key];
      if (!arrow || event.ctrlKey || event.metaKey || event.altKey) return;
      pan(arrow[0] * PAN_STEP * canvas.width, arrow[1] * PAN_STEP * canvas.height);
      event.preventDefault();
    });

    // The position of an event, in device pixels from the centre of the stage.
    function locate(event) {
      const box = stage.getBoundingClientRect();
      const ratio = canvas.width / box.width;
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      return [x * ratio - canvas.width / 2, y * ratio - canvas.height / 2];
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
    new ResizeObserver(() => {
      if (!stage.clientWidth) return; // in a dialog that is closed
      if (view.fitted) return fit();
      measure();
      pan(0, 0);
    }).observe(stage);
    return { show, fit, redraw, showWindow, zoomIn: () => zoomIn(), zoomOut, letGo: () => touches.clear() };
  }

  return { decode, makeCanvas, paintKinds, makeMarks, drawMarks, channels, makeStage };
})();
