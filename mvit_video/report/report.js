"use strict";

// Frame strips: a click plays the video in the strip's place, another one stops it.
for (const button of document.querySelectorAll(".strip button")) {
  const picture = button.querySelector("img"), word = button.querySelector("span"), still = picture.src;
  button.addEventListener("click", () => {
    const playing = button.classList.toggle("playing");
    picture.src = playing ? button.dataset.moving : still;
    word.textContent = playing ? "■ stop" : "▶ play";
  });
}

// Confusion matrices: cells are drawn on a canvas; what is visible is `span` classes from (left, top).
for (const box of document.querySelectorAll(".matrix")) showMatrix(box, JSON.parse(box.querySelector("script").textContent));

function showMatrix(box, data) {
  const canvas = box.querySelector("canvas"), line = box.querySelector(".hover"), pen = canvas.getContext("2d");
  const count = data.names.length, rows = data.names.map(() => new Map());
  for (const [row, column, videos] of data.cells) rows[row].set(column, videos);
  const view = { left: 0, top: 0, span: count };
  let plot = { x: 0, y: 0, side: 0, margin: 0 }, marked = null, wide = 0;

  function layout() {
    wide = Math.min(box.clientWidth, 860);
    pen.font = `${lettering(13)}px system-ui, sans-serif`;
    const longest = Math.max(...data.names.map((name) => pen.measureText(name).width));
    const margin = Math.ceil(Math.min(longest + 10, wide * 0.3, 210)) + 18;
    plot = { x: margin, y: 8, side: wide - margin - 8, margin };
    const tall = plot.side + margin + 10, dots = window.devicePixelRatio || 1;
    canvas.width = wide * dots;
    canvas.height = tall * dots;
    canvas.style.width = wide + "px";
    canvas.style.height = tall + "px";
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    draw();
  }

  // Names as large as their rows allow, numbers as large as their cells allow.
  function lettering(most) {
    return Math.max(11, Math.min(most, (0.8 * plot.side) / view.span));
  }

  function clamp() {
    view.span = Math.min(Math.max(view.span, Math.min(4, count)), count);
    view.left = Math.min(Math.max(view.left, 0), count - view.span);
    view.top = Math.min(Math.max(view.top, 0), count - view.span);
    canvas.style.touchAction = view.span < count ? "none" : "auto";
  }

  function draw() {
    clamp();
    const style = getComputedStyle(box), ink = style.getPropertyValue("--ink"), soft = style.getPropertyValue("--soft");
    const cell = plot.side / view.span, tall = plot.side + plot.margin + 10;
    pen.clearRect(0, 0, wide, tall);
    pen.save();
    pen.beginPath();
    pen.rect(plot.x, plot.y, plot.side, plot.side);
    pen.clip();
    pen.fillStyle = style.getPropertyValue("--card");
    pen.fillRect(plot.x, plot.y, plot.side, plot.side);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `${Math.max(11, Math.min(24, cell * 0.3))}px system-ui, sans-serif`;
    for (let row = Math.floor(view.top); row < Math.min(view.top + view.span, count); row++) {
      for (const [column, videos] of rows[row]) drawCell(row, column, videos, cell, style, ink);
    }
    if (marked) {
      pen.strokeStyle = ink;
      pen.strokeRect(plot.x + (marked.column - view.left) * cell, plot.y + (marked.row - view.top) * cell, cell, cell);
    }
    pen.restore();
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.strokeRect(plot.x, plot.y, plot.side, plot.side);
    drawNames(cell, ink, soft);
  }

  function drawCell(row, column, videos, cell, style, ink) {
    const share = videos / data.totals[row], strength = Math.sqrt(share);
    const size = Math.max(cell - (cell > 6 ? 1 : 0), 2);
    const x = plot.x + (column - view.left) * cell, y = plot.y + (row - view.top) * cell;
    pen.globalAlpha = 0.08 + 0.92 * strength;
    pen.fillStyle = style.getPropertyValue(row === column ? "--accent" : "--wrong");
    pen.fillRect(x, y, size, size);
    pen.globalAlpha = 1;
    if (cell >= 18) {
      pen.fillStyle = strength > 0.6 ? style.getPropertyValue("--paper") : ink;
      pen.fillText(videos, x + cell / 2, y + cell / 2);
    }
  }

  function drawNames(cell, ink, soft) {
    const every = Math.ceil(13 / cell);
    const named = (from) => {
      const places = [];
      for (let place = (every >> 1); place < count; place += every) {
        const pixel = (place + 0.5 - from) * cell;
        if (pixel >= 6 && pixel <= plot.side - 6) places.push([data.names[place], pixel]);
      }
      return places;
    };
    const room = plot.margin - 24;
    pen.font = `${lettering(14)}px system-ui, sans-serif`;
    pen.fillStyle = ink;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const [name, pixel] of named(view.top)) pen.fillText(shortened(name, room), plot.x - 5, plot.y + pixel);
    for (const [name, pixel] of named(view.left)) {
      pen.save();
      pen.translate(plot.x + pixel, plot.y + plot.side + 5);
      pen.rotate(-Math.PI / 2);
      pen.fillText(shortened(name, room), 0, 0);
      pen.restore();
    }
    pen.fillStyle = soft;
    pen.textAlign = "center";
    pen.fillText("predicted", plot.x + plot.side / 2, plot.y + plot.side + plot.margin - 8);
    pen.save();
    pen.translate(9, plot.y + plot.side / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText("true", 0, 0);
    pen.restore();
  }

  function shortened(name, room) {
    if (pen.measureText(name).width <= room) return name;
    while (name && pen.measureText(name + "…").width > room) name = name.slice(0, -1);
    return name + "…";
  }

  function cellAt(event) {
    const frame = canvas.getBoundingClientRect(), cell = plot.side / view.span;
    const column = Math.floor((event.clientX - frame.left - plot.x) / cell + view.left);
    const row = Math.floor((event.clientY - frame.top - plot.y) / cell + view.top);
    const inside = Math.min(row - Math.floor(view.top), column - Math.floor(view.left)) >= 0;
    return inside && row < Math.min(view.top + view.span, count) && column < Math.min(view.left + view.span, count)
      ? { row, column }
      : null;
  }

  function mark(place) {
    marked = place;
    if (place) {
      const videos = rows[place.row].get(place.column) || 0, all = data.totals[place.row];
      const share = all ? ` (${((100 * videos) / all).toFixed(1)} %)` : "";
      line.textContent = `true: ${data.names[place.row]} · predicted: ${data.names[place.column]} · ${videos} of ${all} videos${share}`;
    } else line.textContent = line.dataset.hint;
    draw();
  }

  function zoom(factor, row, column) {
    const middle = [row ?? view.top + view.span / 2, column ?? view.left + view.span / 2];
    const part = [(middle[0] - view.top) / view.span, (middle[1] - view.left) / view.span];
    view.span = Math.min(Math.max(view.span / factor, Math.min(4, count)), count);
    view.top = middle[0] - part[0] * view.span;
    view.left = middle[1] - part[1] * view.span;
    draw();
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, left: view.left, top: view.top };
    if (view.span < count) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held && view.span < count) {
      const cell = plot.side / view.span;
      view.left = held.left - (event.clientX - held.x) / cell;
      view.top = held.top - (event.clientY - held.y) / cell;
    }
    mark(cellAt(event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (held = null));
  canvas.addEventListener("pointerleave", () => mark(null));
  canvas.addEventListener("dblclick", (event) => {
    const place = cellAt(event);
    if (place) zoom(2, place.row + 0.5, place.column + 0.5);
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const place = cellAt(event);
    if (place) zoom(event.deltaY < 0 ? 1.25 : 0.8, place.row + 0.5, place.column + 0.5);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "+") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (moves[event.key] && view.span < count) {
      view.left += (moves[event.key][0] * view.span) / 8;
      view.top += (moves[event.key][1] * view.span) / 8;
      draw();
    } else return;
    event.preventDefault();
  });
  box.querySelector(".closer").addEventListener("click", () => zoom(1.5));
  box.querySelector(".farther").addEventListener("click", () => zoom(1 / 1.5));
  box.querySelector(".whole").addEventListener("click", () => zoom(1 / count));
  box.querySelector("input").addEventListener("change", (event) => {
    const row = data.names.indexOf(event.target.value);
    if (row < 0) {
      line.textContent = `no class is named '${event.target.value}'`;
      return;
    }
    view.span = Math.min(24, count);
    view.left = view.top = row - Math.floor(view.span / 2);
    mark({ row, column: row });
  });
  line.dataset.hint = line.textContent;
  new ResizeObserver(layout).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  layout();
}
