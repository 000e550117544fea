// The overlay of one or several results. gradio gives `element`, `props` and `watch`.
// props.value: {width, height, image, names, colors, 
// panels: [{method, title, note, score, labels, scores, named}]}; `score` says what scores are.
const NOTHING = 65535, UNIT = 1000
const off = new Set()
const look = { opacity: 0.55, edges: true }
// Read by the page when files are made: the thresholds of each method, {pixel, name}.
const thresholds = (window.openvocabThresholds = {})
let view = null, turn = 0

const find = (what) => element.querySelector(what)
const make = (tag, text = "", kind = "") => {
  const made = document.createElement(tag)
  made.textContent = text
  if (kind) made.className = kind
  return made
}

const unpack = async (text) => {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))
  return new Uint16Array(await new Response(stream).arrayBuffer())
}

const pixels = async (address, width, height) => {
  const image = new Image()
  image.src = address
  await image.decode()
  const canvas = new OffscreenCanvas(width, height)
  const pen = canvas.getContext("2d")
  pen.drawImage(image, 0, 0)
  return pen.getImageData(0, 0, width, height).data
}

// The label of a pixel behind the thresholds; what is switched off stays won, but is not drawn.
const labelAt = (panel, at) => {
  const label = panel.labels[at]
  return (panel.judged && panel.judged[at] < panel.pixel) || panel.dropped.has(label) ? NOTHING : label
}

const percent = (share) => (share > 0 && share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`)

// Count the pixels of each label and add up their scores; then drop what is too low on average.
const count = (panel) => {
  const numbers = new Map(), sums = new Map()
  panel.dropped = new Set()
  for (let at = 0; at < panel.labels.length; at++) {
    const label = labelAt(panel, at)
    numbers.set(label, (numbers.get(label) ?? 0) + 1)
    if (panel.scores) sums.set(label, (sums.get(label) ?? 0) + panel.scores[at])
  }
  panel.shares = new Map()
  panel.means = new Map()
  for (const [label, number] of numbers) {
    const low = label !== NOTHING && sums.has(label) && sums.get(label) < panel.name * number
    if (low) panel.dropped.add(label)
    const kept = low ? NOTHING : label
    panel.shares.set(kept, (panel.shares.get(kept) ?? 0) + number / panel.labels.length)
    if (!low && sums.has(label)) panel.means.set(label, sums.get(label) / number / UNIT)
  }
}

const paint = (panel) => {
  const { width, height, image, colors } = view
  const pen = panel.canvas.getContext("2d")
  const drawn = pen.createImageData(width, height)
  const labels = new Uint16Array(width * height)
  for (let at = 0; at < labels.length; at++) {
    const label = labelAt(panel, at)
    labels[at] = off.has(label) ? NOTHING : label
  }
  for (let at = 0; at < labels.length; at++) {
    const label = labels[at]
    const edge = look.edges && ((at % width < width - 1 && labels[at + 1] !== label) ||
      (at + width < labels.length && labels[at + width] !== label))
    for (let channel = 0; channel < 3; channel++) {
      const under = image[4 * at + channel]
      const color = label === NOTHING ? under : under + (colors[label][channel] - under) * look.opacity
      drawn.data[4 * at + channel] = edge ? 0.2 * color + 0.8 * 255 : Math.round(color)
    }
    drawn.data[4 * at + 3] = 255
  }
  pen.putImageData(drawn, 0, 0)
  const found = [...panel.shares].filter(([label]) => label !== NOTHING).sort((a, b) => b[1] - a[1])
  const said = found.slice(0, 12).map(([label, share]) => `${view.names[label]} ${percent(share)}`)
  panel.canvas.setAttribute("aria-label",
    `Segmentation by ${panel.title}: ${said.join(", ") || "none of the names"}. Arrow keys read pixels.`)
}

const say = (panel, x, y) => {
  panel.at = [Math.min(Math.max(x, 0), view.width - 1), Math.min(Math.max(y, 0), view.height - 1)]
  const at = panel.at[1] * view.width + panel.at[0]
  const label = labelAt(panel, at)
  const name = label === NOTHING ? "none of these" : view.names[label]
  const score = panel.scores ? `, ${panel.score} ${(panel.scores[at] / UNIT).toFixed(2)}` : ""
  panel.said.textContent = `${name}${score} (column ${panel.at[0]}, row ${panel.at[1]})`
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

const addPanel = (panel) => {
  const figure = make("figure"), caption = make("figcaption"), stage = make("div", "", "stage")
  caption.append(make("strong", panel.title), " ", make("small", panel.note))
  panel.canvas = make("canvas")
  Object.assign(panel.canvas, { width: view.width, height: view.height, tabIndex: 0 })
  panel.canvas.setAttribute("role", "img")
  panel.said = make("output", "Point at the picture, or use the arrow keys, to read a pixel.", "said")
  panel.said.style.display = "block"
  panel.at = [view.width >> 1, view.height >> 1]
  panel.canvas.onpointermove = (event) => {
    // `object-fit: contain` may leave room beside a tall picture.
    const box = panel.canvas.getBoundingClientRect()
    const scale = Math.min(box.width / view.width, box.height / view.height)
    const left = box.left + (box.width - scale * view.width) / 2
    const top = box.top + (box.height - scale * view.height) / 2
    say(panel, Math.floor((event.clientX - left) / scale), Math.floor((event.clientY - top) / scale))
  }
  panel.canvas.onkeydown = (event) => {
    const step = STEPS[event.key]
    if (!step) return
    event.preventDefault()
    const far = event.shiftKey ? 1 : Math.max(1, view.width >> 5)
    say(panel, panel.at[0] + far * step[0], panel.at[1] + far * step[1])
  }
  stage.append(panel.canvas)
  figure.append(caption, stage, panel.said)
  if (panel.judged) {
    figure.append(thresholdOf(panel, "pixel", panel.judged, `None of these below ${panel.score}`))
    figure.append(thresholdOf(panel, "name", panel.scores, `Hide names with a mean ${panel.score} below`))
  }
  find(".panels").append(figure)
}

const thresholdOf = (panel, key, scores, text) => {
  const line = make("label", "", "threshold")
  const bar = make("input"), value = make("output", "0.00")
  const most = Math.ceil(scores.reduce((a, b) => Math.max(a, b), 0) / UNIT)
  Object.assign(bar, { type: "range", min: 0, max: most, step: 0.01, value: 0, className: key })
  bar.oninput = () => {
    panel[key] = Math.round(bar.value * UNIT) // in whole units
    thresholds[panel.method] = { ...thresholds[panel.method], [key]: Number(bar.value) }
    value.textContent = Number(bar.value).toFixed(2)
    redraw()
  }
  line.append(make("span", text), bar, value)
  return line
}

const addNames = () => {
  const most = new Map()
  for (const panel of view.panels)
    for (const [label, share] of panel.shares) most.set(label, Math.max(most.get(label) ?? 0, share))
  const won = [...most.keys()].filter((label) => label !== NOTHING).sort((a, b) => most.get(b) - most.get(a) || a - b)
  const table = make("table"), head = make("tr")
  head.append(make("th", "Name"), ...view.panels.map((panel) => {
    const cell = make("th", panel.title)
    cell.append(make("small", panel.scores ? `share, mean ${panel.score}` : "share"))
    return cell
  }))
  table.createTHead().append(head)
  const body = table.createTBody()
  for (const label of [...won, NOTHING]) {
    const row = make("tr"), cell = make("td")
    if (label === NOTHING) cell.textContent = "none of these"
    else {
      const line = make("label"), box = make("input"), swatch = make("span", "", "swatch")
      Object.assign(box, { type: "checkbox", checked: !off.has(label) })
      box.onchange = () => { box.checked ? off.delete(label) : off.add(label); redraw() }
      swatch.style.background = `rgb(${view.colors[label]})`
      line.append(box, swatch, make("span", view.names[label]))
      cell.append(line)
    }
    row.append(cell)
    for (const panel of view.panels) {
      const share = make("td")
      share.dataset.label = label
      row.append(share)
    }
    body.append(row)
  }
  const list = make("div", "", "list")
  list.append(table)
  find(".names").replaceChildren(list)
  const lost = view.names.filter((_, label) => !most.has(label))
  if (lost.length) {
    const fold = make("details")
    fold.append(make("summary", `${lost.length} of ${view.names.length} names won no pixel`), lost.join(", "))
    find(".names").append(fold)
  }
}

const redraw = () => {
  if (!view) return
  for (const panel of view.panels) {
    count(panel)
    paint(panel)
  }
  for (const row of find(".names").querySelectorAll("tbody tr"))
    row.querySelectorAll("[data-label]").forEach((cell, place) => {
      const panel = view.panels[place], label = Number(cell.dataset.label)
      const mean = label === NOTHING ? undefined : panel.means.get(label)
      cell.replaceChildren(percent(panel.shares.get(label) ?? 0))
      if (mean !== undefined) cell.append(make("small", mean.toFixed(2)))
    })
}

const show = async () => {
  const value = props.value, mine = ++turn
  if (!value || !value.panels) return
  const panels = await Promise.all(value.panels.map(async (panel) => ({
    ...panel, labels: await unpack(panel.labels),
    scores: panel.scores ? await unpack(panel.scores) : null,
  })))
  // What the threshold is compared with: whether any of the names is there, or else the score.
  for (const panel of panels) Object.assign(panel, { pixel: 0, name: 0, dropped: new Set() })
  for (const panel of panels) panel.judged = panel.named ? await unpack(panel.named) : panel.scores
  const image = await pixels(value.image, value.width, value.height)
  if (mine !== turn) return // a newer result has come meanwhile
  view = { ...value, image, panels }
  off.clear()
  find(".controls").hidden = false
  find(".opacity").value = 100 * look.opacity
  find(".edges").checked = look.edges
  find(".opacity").oninput = (event) => { look.opacity = event.target.value / 100; redraw() }
  find(".edges").onchange = (event) => { look.edges = event.target.checked; redraw() }
  for (const method in thresholds) delete thresholds[method]
  find(".panels").replaceChildren()
  view.panels.forEach(addPanel)
  view.panels.forEach(count)
  addNames()
  redraw()
  element.dataset.shown = String(turn)
}

watch("value", show)
show()
