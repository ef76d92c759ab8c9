// The page of `segpipe view`: asks for a case, hands its volumes to NiiVue, and turns buttons and keys into settings.
"use strict";

const at = (id) => document.getElementById(id);
// Okabe and Ito's colours, told apart by colour-blind people too; black is left out on a dark ground
const PALETTE = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
const DIFFERENCES = [["missed", [213, 94, 0]], ["spurious", [86, 180, 233]], ["other label", [240, 228, 66]]];
const WINDOWS = { soft: [-160, 240], liver: [-45, 105], lung: [-1350, 150], bone: [-450, 1050], brain: [0, 80] }; // HU
const MAPS = ["reference", "prediction", "difference"];
const OUTLINE_ONLY = 0.01; // opacity of the inside; NiiVue leaves a layer of 0 out
const LABEL_INTENT = 1002; // NIfTI's code for label maps: NiiVue draws outlines of these

const nv = new niivue.Niivue({
  backColor: [0.09, 0.09, 0.11, 1], crosshairColor: [0.94, 0.89, 0.26, 0.8], dragAndDropEnabled: false, isCornerOrientationText: true,
  loadingText: "", logLevel: "error", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", viewModeHotKey: "",
  multiplanarEqualSize: true, multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
});
const on = { reference: true, prediction: true, outline: true, difference: false };
let cases = [];
let current = -1; // index into `cases`
let info = null; // of the current case, null until it is known
let layer = {}; // name: NiiVue's volume; `image` among them
let turn = 0; // counts requests for a case, so that a late answer to an earlier one is thrown away

async function ask(path, kind) {
  const response = await fetch(path);
  if (!response.ok) throw new Error((await response.json()).message);
  return response[kind]();
}

const pathOf = (index, file) => `case/${encodeURIComponent(cases[index].case_id)}/${file}`;
const colourOf = (value) => PALETTE[(((value - 1) % PALETTE.length) + PALETTE.length) % PALETTE.length];

// A table for NiiVue: index 0 is clear, index i has colours[i - 1].
function colourTable(colours, names) {
  const all = [[0, 0, 0], ...colours];
  return {
    R: all.map((c) => c[0]), G: all.map((c) => c[1]), B: all.map((c) => c[2]),
    A: all.map((_, i) => (i ? 255 : 0)), I: all.map((_, i) => i), labels: ["", ...names],
  };
}

async function volume(path, name) {
  return niivue.NVImage.loadFromUrl({ url: await ask(path, "arrayBuffer"), name: `${name}.nii` });
}

async function show(index) {
  if (index < 0 || index >= cases.length) return;
  const mine = ++turn;
  current = index;
  info = null;
  markCurrent();
  tell("reading …");
  try {
    const found = await ask(pathOf(index, "info.json"), "json");
    const channel = Math.min(Math.max(at("channel").selectedIndex, 0), found.channels.length - 1);
    const wanted = [["image", `image_${channel}.nii`], ...found.maps.map((name) => [name, `${name}.nii`])];
    const volumes = await Promise.all(wanted.map(([name, file]) => volume(pathOf(index, file), name)));
    if (mine !== turn) return;
    info = found;
    layer = Object.fromEntries(wanted.map(([name], i) => [name, volumes[i]]));
    fillChannels(channel);
    place(volumes);
    goToError();
    tell(info.notes.join("\n"));
  } catch (fault) {
    if (mine !== turn) return;
    place([]);
    layer = {};
    tell(fault.message);
  }
  settle();
}

// Puts volumes on the screen instead of those that are there.
function place(volumes) {
  while (nv.volumes.length) nv.removeVolumeByIndex(nv.volumes.length - 1);
  for (const name of MAPS.filter((one) => layer[one])) {
    const isDifference = name === "difference";
    const colours = isDifference ? DIFFERENCES.map((one) => one[1]) : info.labels.map((one) => colourOf(one.value));
    const names = isDifference ? DIFFERENCES.map((one) => one[0]) : info.labels.map((one) => one.name);
    layer[name].setColormapLabel(colourTable(colours, names));
    layer[name].colorbarVisible = false;
  }
  volumes.forEach((one) => nv.addVolume(one));
  if (layer.image) applyWindow();
  restyle();
}

async function changeChannel(index) {
  const mine = ++turn;
  try {
    const image = await volume(pathOf(current, `image_${index}.nii`), "image");
    if (mine !== turn) return;
    const where = [...nv.scene.crosshairPos];
    layer.image = image;
    place([image, ...MAPS.map((name) => layer[name]).filter(Boolean)]);
    nv.scene.crosshairPos = where;
    nv.drawScene();
  } catch (fault) {
    tell(fault.message);
  }
  settle();
}

// Opacity and outline of every layer as the buttons say.
function restyle() {
  const opacity = Number(at("opacity").value);
  for (const name of MAPS.filter((one) => layer[one])) {
    const isOutline = name === "prediction" && on.outline;
    layer[name].hdr.intent_code = isOutline ? LABEL_INTENT : 0;
    layer[name].opacity = !on[name] ? 0 : isOutline ? OUTLINE_ONLY : opacity;
  }
  nv.opts.atlasOutline = 1;
  nv.updateGLVolume();
  for (const name of Object.keys(on)) {
    at(name).setAttribute("aria-pressed", String(on[name]));
    at(name).disabled = !layer[name === "outline" ? "prediction" : name];
  }
  fillLegend();
}

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
  nv.scene.crosshairPos = nv.mm2frac(info.error.point_ras_mm);
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

function fillChannels(chosen) {
  at("channel").replaceChildren(...info.channels.map((name) => new Option(name)));
  at("channel").selectedIndex = chosen;
  at("channel").disabled = info.channels.length < 2;
}

function fillLegend() {
  const labels = info ? info.labels.map((one) => [one.name, colourOf(one.value)]) : [];
  const shown = on.difference && layer.difference ? [...labels, ...DIFFERENCES] : labels;
  at("legend").replaceChildren(...shown.map(([name, colour]) => {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${colour})`;
    item.append(swatch, name);
    return item;
  }));
}

function tell(text) {
  at("message").textContent = text;
}

// For whoever waits for the page to come to rest (a test): which case is drawn, and where its largest error is.
function settle() {
  const wrong = info && info.error;
  at("error").disabled = !wrong;
  at("error").textContent = wrong ? `largest error (${(wrong.volume_mm3 / 1000).toPrecision(2)} ml)` : "largest error";
  document.body.dataset.shown = current < 0 ? "" : cases[current].case_id;
}

const toggle = (name) => { if (!at(name).disabled) { on[name] = !on[name]; restyle(); } };
function step(id) {
  const list = at(id);
  if (list.disabled || !list.options.length) return;
  list.selectedIndex = (list.selectedIndex + 1) % list.options.length;
  list.dispatchEvent(new Event("change"));
}
function planes(value) {
  at("planes").value = value;
  nv.setSliceType(Number(value));
}

const KEYS = {
  j: () => show(current + 1), k: () => show(current - 1),
  r: () => toggle("reference"), p: () => toggle("prediction"), o: () => toggle("outline"), d: () => toggle("difference"),
  e: goToError, c: () => step("channel"), w: () => step("preset"),
  1: () => planes("3"), 2: () => planes("0"), 3: () => planes("1"), 4: () => planes("2"), 5: () => planes("4"),
};

function listen() {
  at("previous").onclick = KEYS.k;
  at("next").onclick = KEYS.j;
  for (const name of Object.keys(on)) at(name).onclick = () => toggle(name);
  at("error").onclick = goToError;
  at("channel").onchange = () => changeChannel(at("channel").selectedIndex);
  at("preset").onchange = () => { if (layer.image) { applyWindow(); nv.updateGLVolume(); } };
  at("low").onchange = at("high").onchange = typedWindow;
  at("opacity").oninput = restyle;
  at("planes").onchange = () => planes(at("planes").value);
  nv.onIntensityChange = () => { if (layer.image) showWindow(); };
  nv.onLocationChange = (where) => { at("place").textContent = where.string; };
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
  at("order").textContent = `${cases.length} cases${hasScores ? ", worst mean Dice first" : ", by name"}`;
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
  const asked = cases.findIndex((one) => one.case_id === decodeURIComponent(location.hash.slice(1)));
  await show(Math.max(asked, 0));
}

begin().catch((fault) => tell(fault.message));
