// The page of `segpipe view`: requests a case, hands its volumes to NiiVue, and turns buttons and keys into settings.
"use strict";

const at = (id) => document.getElementById(id);
const WINDOWS = { soft: [-160, 240], liver: [-45, 105], lung: [-1350, 150], bone: [-450, 1050], brain: [0, 80] }; // HU
const LINES = { reference: [], prediction: [6, 4] }; // dashes in pixels, as in the report

const nv = new niivue.Niivue({
  backColor: [0.09, 0.09, 0.11, 1], crosshairColor: [0.94, 0.89, 0.26, 0.8], dragAndDropEnabled: false,
  isRadiologicalConvention: true, sagittalNoseLeft: true, // as the report draws them: a side must not change between the two
  isOrientationTextVisible: false, // contours.js draws the letters, with a halo
  loadingText: "", logLevel: "error", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
  crosshairWidthUnit: "percent", crosshairWidth: 0.4, crosshairGap: 3,
  multiplanarEqualSize: true, multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
});
const on = { reference: true, prediction: true, outline: true, difference: false };
const contours = new Contours(at("lines"));
let cases = [];
let current = -1; // index into `cases`
let info = null; // of the current case, null until it is known
let layer = {}; // name: NiiVue's volume, for those that were fetched; `image` among them
let turn = 0; // counts requests for a case, so that a late answer to an earlier one is thrown away

async function ask(path, kind) {
  const response = await fetch(path);
  if (!response.ok) throw new Error((await response.json()).message);
  return response[kind]();
}

const pathOf = (index, file) => `case/${encodeURIComponent(cases[index].case_id)}/${file}`;
const paler = (colour) => colour.map((part) => Math.round(part + 0.6 * (255 - part))); // as in the report

// A table for NiiVue: index 0 is clear, index i has colours[i - 1].
function colourTable(colours, names) {
  const all = [[0, 0, 0], ...colours];
  return {
    R: all.map((c) => c[0]), G: all.map((c) => c[1]), B: all.map((c) => c[2]),
    A: all.map((_, i) => (i ? 255 : 0)), I: all.map((_, i) => i), labels: ["", ...names],
  };
}

async function fetchLayer(name, file) {
  const found = await niivue.NVImage.loadFromUrl({ url: await ask(pathOf(current, file), "arrayBuffer"), name: `${name}.nii` });
  found.colorbarVisible = false;
  if (name === "image") return found;
  const kinds = name === "difference" ? info.differences : info.labels;
  found.setColormapLabel(colourTable(kinds.map((one) => one.colour), kinds.map((one) => one.name)));
  return found;
}

async function show(index) {
  if (index < 0 || index >= cases.length) return;
  const mine = ++turn;
  current = index;
  [info, layer] = [null, {}];
  contours.forget();
  markCurrent();
  tell("Loading …");
  try {
    const found = await ask(pathOf(index, "info.json"), "json");
    if (mine !== turn) return;
    info = found;
    fillChannels();
    if (!await changeChannel(mine)) return;
    goToError();
    tell(info.notes.join("\n"));
    settle();
  } catch (fault) {
    if (mine === turn) fail(fault);
  }
}

// Fetches the chosen channel and draws it; false if another case or channel was chosen meanwhile.
async function changeChannel(mine) {
  const image = await fetchLayer("image", `image_${at("channel").selectedIndex}.nii`);
  if (mine !== turn) return false;
  const has = (name) => info.maps.includes(name) && !layer[name];
  const names = ["reference", "prediction"].filter(has);
  const maps = await Promise.all(names.map(async (name) => [name, await fetchLayer(name, `${name}.nii`)]));
  if (mine !== turn) return false;
  layer = { ...layer, image, ...Object.fromEntries(maps) };
  applyWindow();
  return draw();
}

const isOn = (name) => on[name] && info.maps.includes(name);
const isLines = () => on.outline && nv.opts.sliceType !== niivue.SLICE_TYPE.RENDER; // a body in 3D has no outline
const shapeOf = (volume) => String(volume.dimsRAS.slice(1, 4));
const isLine = (name) => isLines() && name in LINES && shapeOf(layer[name]) === shapeOf(layer.image); // others are filled

// Draws the image and the maps that the buttons ask for; fetches the differences when they are first needed.
async function draw() {
  const mine = turn;
  if (!layer.image) return false;
  if (isOn("difference") && !layer.difference) {
    const found = await fetchLayer("difference", "difference.nii");
    if (mine !== turn) return false;
    layer.difference = found;
  }
  const filled = ["reference", "prediction", "difference"].filter((name) => isOn(name) && !isLine(name));
  const opacity = Number(at("opacity").value);
  for (const name of filled) layer[name].opacity = name === "difference" ? Math.min(2 * opacity, 1) : opacity; // rims are thin
  nv.volumes = [layer.image, ...filled.map((name) => layer[name])]; // all at once: NiiVue's addVolume draws each time
  nv.back = layer.image;
  nv.overlays = nv.volumes.slice(1);
  nv.updateGLVolume();
  for (const name of Object.keys(on)) {
    at(name).setAttribute("aria-pressed", String(on[name]));
    at(name).disabled = name === "outline" ? !info.labels.length : !info.maps.includes(name);
  }
  fillLegend();
  nv.createOnLocationChange();
  return true;
}

// A dash is longer than a small structure: the prediction's lines are paler too.
const lineColours = (name) => info.labels.map((one) => (name === "prediction" ? paler(one.colour) : one.colour));

function drawLines() {
  if (!info || !layer.image || nv.volumes[0] !== layer.image) return contours.draw(nv, []);
  const shown = Object.keys(LINES).filter((name) => isOn(name) && layer[name] && isLine(name));
  const maps = shown.map((name) => ({ volume: layer[name], colours: lineColours(name), dash: LINES[name] }));
  return contours.draw(nv, maps, isOn("difference") ? 1 : 2); // wide ones would cover a rim of wrong voxels
}

function fail(fault) {
  [info, layer] = [null, {}];
  [nv.volumes, nv.overlays, nv.back] = [[], [], null];
  nv.drawScene();
  fillLegend();
  at("place").textContent = "";
  tell(fault.message);
  settle();
}

const redraw = () => draw().catch(fail);

function applyWindow() {
  const image = layer.image;
  const kind = at("preset").value;
  const ranges = { auto: [image.robust_min, image.robust_max], full: [image.global_min, image.global_max] };
  [image.cal_min, image.cal_max] = ranges[kind] || WINDOWS[kind];
  showWindow();
}

function showWindow() {
  at("low").value = Number(layer.image.cal_min.toPrecision(5));
  at("high").value = Number(layer.image.cal_max.toPrecision(5));
}

function typedWindow() {
  const [low, high] = [at("low").valueAsNumber, at("high").valueAsNumber];
  if (!layer.image || !(low < high)) return;
  [layer.image.cal_min, layer.image.cal_max] = [low, high];
  nv.updateGLVolume();
}

function goToError() {
  if (!info || !info.error) return;
  nv.scene.crosshairPos = nv.mm2frac(info.error.point_ras_mm, 0, true); // true: of oblique images too
  nv.drawScene();
  nv.createOnLocationChange();
}

function markCurrent() {
  [...at("cases").children].forEach((item, i) => {
    item.firstChild.setAttribute("aria-current", String(i === current));
    if (i === current) item.scrollIntoView({ block: "nearest" });
  });
  history.replaceState(null, "", `#${encodeURIComponent(cases[current].case_id)}`);
}

// The channel of the case before stays chosen where there is one of that number.
function fillChannels() {
  const chosen = Math.min(Math.max(at("channel").selectedIndex, 0), info.channels.length - 1);
  at("channel").replaceChildren(...info.channels.map((name) => new Option(name)));
  at("channel").selectedIndex = chosen;
  at("channel").disabled = info.channels.length < 2;
}

function fillLegend() {
  const swatches = (kinds) => kinds.map((one) => [one.name, { background: `rgb(${one.colour})` }]);
  const labels = info ? swatches(info.labels) : [];
  const lineOf = (name) => [name, {}, LINES[name].length ? "line dashed" : "line"];
  const lines = info && isLines() ? Object.keys(LINES).filter(isOn).map(lineOf) : [];
  const kinds = info && isOn("difference") ? swatches(info.differences) : [];
  at("legend").replaceChildren(...[...lines, ...labels, ...kinds].map(([name, style, kind]) => {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    Object.assign(swatch.style, style);
    if (kind) swatch.className = kind;
    item.append(swatch, name);
    return item;
  }));
}

// Where the crosshair is, and what every layer has there.
function tellPlace(where) {
  if (!info) return;
  const [x, y, z] = [...where.mm].map((mm) => mm.toFixed(1));
  const values = ["image", "reference", "prediction"].filter((name) => layer[name]).map((name) => {
    const value = layer[name].getValue(...layer[name].mm2vox([...where.mm].slice(0, 3)));
    if (name === "image") return `${info.channels[at("channel").selectedIndex]} ${Number(value.toPrecision(5))}`;
    return `${name} ${value ? info.labels[value - 1].name : "none"}`;
  });
  at("place").textContent = [`R ${x} A ${y} S ${z} mm`, ...values].join(" · ");
}

function tell(text) {
  at("message").textContent = text;
}

// For a test that waits until the page is drawn: which case is drawn, and where its largest error is.
const volumeText = (mm3) => `${(mm3 / 1000).toFixed(mm3 < 10000 ? 3 : 0)} mL`;

function settle() {
  const wrong = info && info.error;
  at("error").disabled = !wrong;
  at("error").textContent = wrong ? `largest error (${volumeText(wrong.volume_mm3)})` : "largest error";
  document.body.dataset.shown = current < 0 ? "" : cases[current].case_id;
}

const toggle = (name) => { if (!at(name).disabled) { on[name] = !on[name]; redraw(); } };
function step(id) {
  const list = at(id);
  if (list.disabled || !list.options.length) return;
  list.selectedIndex = (list.selectedIndex + 1) % list.options.length;
  list.dispatchEvent(new Event("change"));
}
// One convention for all planes; what is stored, its coordinates and the letters' meaning stay.
function setSide(value) {
  at("side").value = value;
  nv.setRadiologicalConvention(value === "radiological");
  redraw();
}
function planes(value) {
  at("planes").value = value;
  nv.setSliceType(Number(value));
  redraw();
}

const KEYS = {
  j: () => show(current + 1), k: () => show(current - 1),
  r: () => toggle("reference"), p: () => toggle("prediction"), o: () => toggle("outline"), d: () => toggle("difference"),
  e: goToError, c: () => step("channel"), w: () => step("preset"), f: () => step("side"),
  1: () => planes("3"), 2: () => planes("0"), 3: () => planes("1"), 4: () => planes("2"), 5: () => planes("4"),
};

function listen() {
  at("previous").onclick = KEYS.k;
  at("next").onclick = KEYS.j;
  for (const name of Object.keys(on)) at(name).onclick = () => toggle(name);
  at("error").onclick = goToError;
  at("channel").onchange = () => changeChannel(++turn).catch(fail);
  at("preset").onchange = () => { if (layer.image) { applyWindow(); nv.updateGLVolume(); } };
  at("low").onchange = at("high").onchange = typedWindow;
  at("opacity").oninput = redraw;
  at("side").onchange = () => setSide(at("side").value);
  at("planes").onchange = () => planes(at("planes").value);
  nv.onIntensityChange = () => { if (layer.image) showWindow(); };
  nv.onLocationChange = tellPlace;
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select");
    const act = KEYS[event.key.toLowerCase()];
    if (!act || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
}

async function begin() {
  listen();
  const found = await ask("cases.json", "json");
  cases = found.cases;
  at("title").textContent = document.title = found.title;
  const hasScores = cases.some((one) => one.dice !== null);
  const order = hasScores ? "lowest mean Dice first" : "by name";
  at("order").textContent = `${cases.length} ${cases.length === 1 ? "case" : "cases"}, ${order}`;
  at("cases").replaceChildren(...cases.map((one, i) => {
    const [item, button, name, dice] = ["li", "button", "span", "span"].map((tag) => document.createElement(tag));
    name.textContent = one.case_id;
    dice.textContent = one.dice === null ? "" : one.dice.toFixed(3);
    button.append(name, dice);
    button.onclick = () => show(i);
    item.append(button);
    return item;
  }));
  await nv.attachToCanvas(at("canvas"));
  nv.opts.dragMode = niivue.DRAG_MODE.windowing;
  const drawScene = nv.drawScene.bind(nv);
  nv.drawScene = () => { drawScene(); drawLines(); }; // NiiVue has no event for what it has drawn
  const asked = cases.findIndex((one) => one.case_id === decodeURIComponent(location.hash.slice(1)));
  await show(Math.max(asked, 0));
}

begin().catch((fault) => tell(fault.message));
