"use strict";
// Judging masks: filters, decisions that stay in the browser, and a viewer that shows what a mask consists of.
(() => {
  const { decode, makeCanvas, paintKinds, channels } = stages;
  const { review, others, cards, decisions: given } = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll(".card")];
  const STORE = `carvana-batch-review:${review}`;
  const WORDS = { accept: "accepted", reject: "rejected" };
  const LARGEST = 1, PART = 2, HOLE = 3;
  const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

  // Decisions: by image, with the stamp of the mask that was looked at, because a later run may make another one.

  const decided = new Map();

  function loadDecisions() {
    let stored = {};
    try {
      stored = JSON.parse(localStorage.getItem(STORE)) ?? {};
      localStorage.setItem(STORE, JSON.stringify(stored));
    } catch {
      element("storage").hidden = false;
    }
    const before = new Map(given.map(([image, decision, note]) => [image, { decision, note }]));
    let outdated = 0;
    for (const { image, mask } of cards) {
      const own = Object.hasOwn(stored, image) ? stored[image] : null;
      if (own && own.mask === mask) decided.set(image, own);
      else if (before.has(image)) decided.set(image, { ...before.get(image), mask });
      else if (own) outdated++;
    }
    return outdated;
  }

  function storeDecisions() {
    try {
      localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(decided)));
    } catch {
      element("storage").hidden = false;
    }
  }

  const decisionOf = (card) => decided.get(card.image)?.decision ?? "";
  const noteOf = (card) => decided.get(card.image)?.note ?? "";

  function decide(card, values) {
    const next = { decision: decisionOf(card), note: noteOf(card), mask: card.mask, ...values };
    if (next.decision || next.note) decided.set(card.image, next);
    else decided.delete(card.image);
    storeDecisions();
    showDecision(cards.indexOf(card));
    showProgress();
  }

  function showDecision(index) {
    const button = buttons[index];
    const decision = decisionOf(cards[index]);
    const note = noteOf(cards[index]);
    button.dataset.decision = decision;
    const words = [WORDS[decision], note && `“${note}”`].filter(Boolean);
    button.querySelector(".decided").textContent = words.join(" ");
  }

  function count(chosen) {
    const counts = { accept: 0, reject: 0, "": 0 };
    for (const card of chosen) counts[decisionOf(card)]++;
    return counts;
  }

  function showProgress() {
    const counts = count(cards);
    const done = counts.accept + counts.reject;
    element("progress").textContent =
      `${done} of ${counted(cards.length, "mask")} decided: ${counts.accept} accepted, ${counts.reject} rejected`;
    element("save").disabled = element("forget").disabled = !decided.size;
    if (element("estimate")) element("estimate").textContent = estimate(count(cards.filter((card) => !card.worst)));
  }

  // How many of the rest are good: Wilson's interval for the share that is accepted in a random sample.
  function estimate({ accept, reject, "": open }) {
    const n = accept + reject;
    if (!n) return "You have not decided on any of them yet.";
    const said = `Of those drawn at random, you accepted ${accept} and rejected ${reject}`;
    const left = open ? `, with ${open} to go` : "";
    if (n >= others) return `${said}: these are all of the rest.`;
    const z = 1.96;
    const share = accept / n;
    const centre = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = (z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
    const percent = (value) => `${(100 * Math.min(Math.max(value, 0), 1)).toFixed(1)} %`;
    return `${said}${left}. That is ${percent(share)} good ones; of all ${counted(others, "mask")} of the rest,`
      + ` ${percent(centre - half)} to ${percent(centre + half)} are (95 % interval).`;
  }

  // Saving: a table whose cells no spreadsheet takes for formulas, and that predict --files-from reads.

  function makeTable() {
    const quote = (text) => (/[",\r\n;]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const clean = (note) => note.replace(/[\u0000-\u001f\u007f-\u009f]+/g, " ").replace(/(^|;)(?=[=+@\-])/g, "$1'");
    const rows = cards
      .filter((card) => decided.has(card.image))
      .map((card) => [card.image, decisionOf(card), clean(noteOf(card))].map(quote).join(","));
    return ["image,decision,note", ...rows].map((row) => `${row}\n`).join("");
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([makeTable()], { type: "text/csv" }));
    link.download = "decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  function forget() {
    if (!confirm(`Forget ${counted(decided.size, "decision")}?`)) return;
    decided.clear();
    storeDecisions();
    cards.forEach((_, index) => showDecision(index));
    showProgress();
    select();
  }

  // Filters.

  let shown = cards.map((_, index) => index);

  function select() {
    const name = element("filter-name").value.trim().toLowerCase();
    const doubt = element("filter-doubt").value === "" ? -1 : element("filter-doubt").valueAsNumber;
    const group = element("filter-group").value;
    const decision = element("filter-decision").value;
    const folder = element("filter-folder").value;
    const size = element("filter-size").value;
    const fits = (card) =>
      card.name.toLowerCase().includes(name) &&
      card.doubt >= doubt &&
      (!group || card.worst === (group === "worst")) &&
      (!decision || (decisionOf(card) || "open") === decision) &&
      (folder === "*" || `/${card.folder}` === folder) &&
      (!size || card.size === size);
    shown = [];
    cards.forEach((card, index) => {
      const kept = fits(card);
      if (kept) shown.push(index);
      buttons[index].parentElement.hidden = !kept;
    });
    const all = counted(cards.length, "mask");
    element("status").textContent =
      shown.length === cards.length ? `All ${all}, the most doubtful first` : `${shown.length} of ${all}`;
    element("begin").disabled = !shown.length;
  }

  // The viewer.

  const viewer = element("viewer");
  const layers = [...viewer.querySelectorAll("[name=layer]")];
  const canvas = viewer.querySelector("canvas");
  const colour = (name) => getComputedStyle(viewer).getPropertyValue(name).trim();
  // list: the cards among which one turns, which do not change when a decision is made. place: in the list.
  const state = { list: [], place: 0, picture: null, layers: null, spot: -1 };
  const stage = stages.makeStage(element("stage"), draw);
  const current = () => cards[state.list[state.place]];

  async function open(place) {
    const source = element(`picture-${state.list[place]}`);
    if (!source) return; // the page has not loaded that far yet
    keepNote();
    const picture = JSON.parse(source.textContent);
    Object.assign(state, { place, picture, layers: null, spot: -1 });
    describe();
    element("stage").setAttribute("aria-busy", "true");
    if (!viewer.open) viewer.showModal();
    stage.show(picture.width, picture.height);
    const loaded = await load(picture);
    if (state.picture !== picture) return; // another one was opened meanwhile
    state.layers = loaded;
    if (loaded.failed) element("viewer-note").textContent = `The photo ${picture.photo} cannot be shown.`;
    stage.redraw();
  }

  function describe() {
    const card = current();
    const { spots, note } = state.picture;
    viewer.querySelector("bdi").textContent = card.name;
    element("viewer-place").textContent = `${state.place + 1} of ${state.list.length}`;
    element("viewer-doubt").textContent = `doubt ${card.doubt.toFixed(4)}`;
    element("viewer-group").textContent = card.worst ? "most doubtful" : "at random";
    element("viewer-spots").textContent = describeSpots(spots);
    element("viewer-note").textContent = [note, ...card.notes].filter(Boolean).join("; ");
    element("zoom-spot").disabled = !spots.length;
    showChoice();
    element("note").value = noteOf(card);
  }

  function describeSpots(spots) {
    const parts = spots.filter(([isPart]) => isPart).length;
    const holes = spots.length - parts;
    return [parts && counted(parts, "further part"), holes && counted(holes, "hole")].filter(Boolean).join(", ");
  }

  function showChoice() {
    const decision = decisionOf(current());
    element("accept").setAttribute("aria-pressed", decision === "accept");
    element("reject").setAttribute("aria-pressed", decision === "reject");
  }

  async function load({ width, height, labels, photo }) {
    const [labelImage, photoImage] = await Promise.all(
      [labels, photo].map((uri) => (uri ? decode(uri).catch(() => null) : null)),
    );
    const kinds = new Uint8Array(width * height);
    if (labelImage) {
      const reader = makeCanvas(width, height, true);
      reader.drawImage(labelImage, 0, 0);
      const { data } = reader.getImageData(0, 0, width, height);
      for (let i = 0; i < kinds.length; i++) {
        kinds[i] = data[4 * i] > 127 ? LARGEST : data[4 * i + 1] > 127 ? PART : data[4 * i + 2] > 127 ? HOLE : 0;
      }
    }
    const [car, part, hole] = ["--outline", "--part", "--hole"].map((name) => channels(colour(name)));
    const over = {
      photo: () => null,
      outline: () => null,
      tint: () => paintKinds(width, height, kinds, [null, [...car, 90], [...part, 140], [...hole, 110]]),
      cutout: () => {
        const veil = [...channels(colour("--veil")), photoImage ? 235 : 255];
        return paintKinds(width, height, kinds, [veil, null, null, veil]);
      },
    };
    const painted = {};
    return {
      photo: photoImage,
      failed: photo && !photoImage,
      over: (name) => (painted[name] ??= over[name]()),
      marks: stages.makeMarks(width, height, findOutlines(width, height, kinds), [car, part, hole].map((c) => [...c, 255])),
    };
  }

  // The pixels of parts and holes that touch something else: 1 for the largest part, 2 for others, 3 for holes.
  function findOutlines(width, height, kinds) {
    const outlines = new Uint8Array(kinds.length);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const kind = kinds[i];
        if (!kind) continue;
        const differs = (other) => other !== kind && other !== HOLE; // a hole has its own outline
        const ends =
          (x > 0 && differs(kinds[i - 1])) || (x < width - 1 && differs(kinds[i + 1])) ||
          (y > 0 && differs(kinds[i - width])) || (y < height - 1 && differs(kinds[i + width]));
        if (ends) outlines[i] = kind;
      }
    }
    return outlines;
  }

  function draw(context, place) {
    const { left, top, scale, width, height } = place;
    element("stage").toggleAttribute("aria-busy", !state.layers);
    const name = layers.find((layer) => layer.checked).value;
    const percent = `${Math.round(100 * scale)} %`;
    element("zoom-level").textContent = percent;
    canvas.setAttribute("aria-label", `${name} of ${current().name} at ${percent}`);
    if (!state.layers) return;
    const area = [left, top, width * scale, height * scale];
    if (state.layers.photo) {
      context.drawImage(state.layers.photo, ...area);
    } else {
      context.fillStyle = "#f5f5f5";
      context.fillRect(...area);
    }
    const over = state.layers.over(name);
    if (over) context.drawImage(over, ...area);
    if (name !== "outline" && name !== "tint") return;
    stages.drawMarks(context, state.layers.marks, place);
    state.picture.spots.forEach(([isPart, , x, y, w, h], index) => {
      const margin = 6 * (devicePixelRatio || 1);
      context.strokeStyle = isPart ? colour("--part") : colour("--hole");
      context.lineWidth = (index === state.spot ? 3 : 1.5) * (devicePixelRatio || 1);
      context.strokeRect(
        left + x * scale - margin, top + y * scale - margin, w * scale + 2 * margin, h * scale + 2 * margin,
      );
    });
  }

  function showNextSpot() {
    const { spots } = state.picture;
    if (!spots.length) return;
    state.spot = (state.spot + 1) % spots.length;
    const [isPart, pixels, x, y, w, h] = spots[state.spot];
    const margin = Math.max(40, w / 2, h / 2);
    stage.showWindow([x - margin, y - margin, w + 2 * margin, h + 2 * margin]);
    say(`${isPart ? "Further part" : "Hole"} ${state.spot + 1} of ${spots.length}, ${counted(pixels, "pixel")}`);
  }

  function say(text) {
    element("said").textContent = text;
  }

  function choose(decision) {
    const card = current();
    const note = element("note").value;
    decide(card, { decision, note });
    showChoice();
    const counts = count(cards);
    const done = `${card.name} ${WORDS[decision] ?? "undecided"}. ${counts.accept + counts.reject} of ${cards.length} decided.`;
    const isLast = state.place === state.list.length - 1;
    say(decision && isLast ? `${done} That was the last one.` : done);
    if (decision && !isLast) open(state.place + 1);
    else if (decision) element("viewer-place").textContent = `${state.place + 1} of ${state.list.length}, the last one`;
  }

  function keepNote() {
    if (!viewer.open || !state.picture) return;
    const note = element("note").value;
    if (note !== noteOf(current())) decide(current(), { note });
  }

  const turn = (steps) => open((state.place + steps + state.list.length) % state.list.length);

  function start(index) {
    state.list = [...shown];
    open(Math.max(state.list.indexOf(index), 0));
  }

  const keys = {
    a: () => choose("accept"),
    r: () => choose("reject"),
    u: () => choose(""),
    "+": stage.zoomIn,
    "=": stage.zoomIn,
    "-": stage.zoomOut,
    0: stage.fit,
    m: showNextSpot,
    n: () => turn(1),
    p: () => turn(-1),
    t: () => element("note").focus(),
  };
  layers.forEach((layer, index) => {
    keys[index + 1] = () => {
      layer.checked = true;
      stage.redraw();
    };
    layer.addEventListener("change", stage.redraw);
  });

  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === element("note")) {
      if (event.key === "Enter" || event.key === "Escape") {
        keepNote();
        element("stage").focus();
        event.preventDefault();
      }
      return;
    }
    const act = keys[event.key.toLowerCase()];
    if (!act) return;
    act();
    event.preventDefault();
  });

  const actions = {
    accept: keys.a,
    reject: keys.r,
    undo: keys.u,
    "zoom-in": stage.zoomIn,
    "zoom-out": stage.zoomOut,
    "zoom-fit": stage.fit,
    "zoom-spot": showNextSpot,
    "viewer-before": () => turn(-1),
    "viewer-after": () => turn(1),
    "viewer-close": () => viewer.close(),
    begin: () => start(shown.find((index) => !decisionOf(cards[index])) ?? shown[0]),
    save,
    forget,
  };
  for (const [id, act] of Object.entries(actions)) element(id).addEventListener("click", act);
  element("note").addEventListener("change", keepNote);
  buttons.forEach((button, index) => button.addEventListener("click", () => start(index)));
  viewer.addEventListener("close", () => {
    const last = state.list[state.place];
    const note = element("note").value;
    if (state.picture && note !== noteOf(cards[last])) decide(cards[last], { note });
    stage.letGo();
    Object.assign(state, { picture: null, layers: null }); // frees tens of megabytes
    select();
    if (!buttons[last].parentElement.hidden) buttons[last].focus();
  });
  const filters = element("filters");
  filters.addEventListener("input", select);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(select)); // once the fields have been cleared

  const outdated = loadDecisions();
  cards.forEach((_, index) => showDecision(index));
  element("tools").hidden = filters.hidden = false;
  showProgress();
  select();
  if (outdated) {
    element("status").textContent +=
      `. ${counted(outdated, "earlier decision")} left out: made on masks that have changed since`;
  }
})();
