// Contours of label maps in the planes that NiiVue shows, drawn on a canvas over its own.
// NiiVue's outlines are shells in all three axes, which fill a structure wherever its surface is in the plane.
"use strict";

// Axes (0 R, 1 A, 2 S) of NiiVue's planes 0 axial, 1 coronal, 2 sagittal: to the right, upwards, across
const PLANE_AXES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]];
const LETTERS = { // at the left, right, upper and lower edge of these planes
  radiological: ["RLAP", "RLSI", "APSI"], // as in the report
  neurological: ["LRAP", "LRSI", "APSI"],
};

class Contours {
  constructor(canvas) {
    this.canvas = canvas;
    this.traced = new Map(); // volume: contours of its planes that were drawn last
  }

  // Draws `maps` ({volume, colours, dash}) over every plane of `nv`; their shape is the image's. `width` is in CSS pixels.
  draw(nv, maps, width = 2) {
    const size = nv.canvas;
    [this.canvas.width, this.canvas.height] = [size.width, size.height]; // clears it too
    const pen = this.canvas.getContext("2d");
    pen.lineWidth = width * (window.devicePixelRatio || 1);
    const letters = LETTERS[nv.opts.isRadiologicalConvention ? "radiological" : "neurological"];
    nv.screenSlices.forEach((tile) => {
      if (nv.volumes.length && tile.axCorSag <= 2) drawLetters(pen, tile.leftTopWidthHeight, letters[tile.axCorSag]);
    });
    if (!maps.length) return;
    const shape = nv.volumes[0].dimsRAS.slice(1, 4);
    nv.screenSlices.forEach((tile, i) => {
      if (tile.axCorSag > 2 || tile.AxyzMxy.length < 4) return;
      const [right, up, across] = PLANE_AXES[tile.axCorSag];
      const [left, top, width, height] = tile.leftTopWidthHeight;
      // two points well inside the tile: NiiVue knows none beyond its border, and rounding may lie there
      const [low, high] = [0.25, 0.75].map((share) => nv.screenXY2TextureFrac(left + share * width, top + share * height, i, false));
      const xScale = width / 2 / ((high[right] - low[right]) * shape[right]); // pixels of a voxel
      const yScale = height / 2 / ((high[up] - low[up]) * shape[up]);
      const origin = [left + width / 4 - low[right] * shape[right] * xScale, top + height / 4 - low[up] * shape[up] * yScale];
      const toScreen = new DOMMatrix([xScale, 0, 0, yScale, ...origin]);
      const slice = Math.min(Math.max(Math.floor(nv.scene.crosshairPos[across] * shape[across]), 0), shape[across] - 1);
      pen.save();
      pen.beginPath();
      pen.rect(left, top, width, height);
      pen.clip();
      for (const { volume, colours, dash } of maps) {
        pen.setLineDash(dash);
        for (const { label, path } of this.trace(volume, tile.axCorSag, slice)) {
          const onScreen = new Path2D();
          onScreen.addPath(path, toScreen);
          pen.strokeStyle = `rgb(${colours[label - 1]})`;
          pen.stroke(onScreen);
        }
      }
      pen.restore();
    });
  }

  // Contours of a plane, {label, path}, in voxels from the corner of the first one; traced again only for another plane.
  trace(volume, plane, slice) {
    const planes = this.traced.get(volume) || [];
    this.traced.set(volume, planes);
    if (!planes[plane] || planes[plane].slice !== slice) planes[plane] = { slice, paths: tracePlane(volume, plane, slice) };
    return planes[plane].paths;
  }

  forget() {
    this.traced.clear();
  }
}

// A letter of direction in the middle of each edge, with a halo, so that it is legible on any image.
function drawLetters(pen, [left, top, width, height], letters) {
  const scale = window.devicePixelRatio || 1;
  const inset = 12 * scale;
  pen.save();
  Object.assign(pen, { font: `bold ${14 * scale}px sans-serif`, textAlign: "center", textBaseline: "middle", lineWidth: 3 * scale });
  Object.assign(pen, { strokeStyle: "black", fillStyle: "white", lineJoin: "round" });
  const places = [
    [left + inset, top + height / 2], [left + width - inset, top + height / 2],
    [left + width / 2, top + inset], [left + width / 2, top + height - inset],
  ];
  places.forEach(([x, y], i) => {
    pen.strokeText(letters[i], x, y);
    pen.fillText(letters[i], x, y);
  });
  pen.restore();
}

function tracePlane(volume, plane, slice) {
  const [right, up, across] = PLANE_AXES[plane];
  const shape = volume.dimsRAS.slice(1, 4);
  const [first, last] = [[0, 0, 0], shape.map((n) => n - 1)];
  first[across] = last[across] = slice;
  const [values] = volume.getVolumeData(first, last); // the axis R runs fastest, then A, then S; `right` is before `up`
  const [n, m] = [shape[right], shape[up]];
  const at = (x, y) => (x < 0 || y < 0 || x >= n || y >= m ? 0 : values[x + n * y]);
  const ends = new Map(); // label: corner: corners to which an edge leads from there, the label to its left
  const edge = (label, from, to) => {
    if (!label) return;
    if (!ends.has(label)) ends.set(label, new Map());
    const next = ends.get(label);
    if (next.has(from)) next.get(from).push(to);
    else next.set(from, [to]);
  };
  const corner = (x, y) => x + (n + 1) * y;
  for (let y = 0; y <= m; y++) {
    for (let x = 0; x <= n; x++) {
      const [here, before, below] = [at(x, y), at(x - 1, y), at(x, y - 1)];
      if (here !== before) {
        edge(before, corner(x, y), corner(x, y + 1));
        edge(here, corner(x, y + 1), corner(x, y));
      }
      if (here !== below) {
        edge(here, corner(x, y), corner(x + 1, y));
        edge(below, corner(x + 1, y), corner(x, y));
      }
    }
  }
  const found = [...ends].map(([label, next]) => ({ label, ...joinEdges(next, n + 1) }));
  return found.sort((a, b) => b.area - a.area); // a ring before what it encloses, which shares the ring's inner border
}

// One path of closed lines (separate edges would each restart the dashes), and the area that they enclose, holes included.
function joinEdges(next, width) {
  const path = new Path2D();
  let area = 0;
  for (const start of next.keys()) {
    while (next.get(start).length) {
      let here = start;
      let twice = 0; // the area of this line, above 0 if it runs around its label and below around a hole
      path.moveTo(here % width, Math.floor(here / width));
      while (next.get(here).length) {
        const [x, y] = [here % width, Math.floor(here / width)];
        here = next.get(here).pop();
        const [toX, toY] = [here % width, Math.floor(here / width)];
        twice += x * toY - toX * y;
        path.lineTo(toX, toY);
      }
      area += Math.max(twice, 0) / 2;
    }
  }
  return { path, area };
}
