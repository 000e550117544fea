"use strict";
// Everything that the page does beyond standing still: pictures, filters, sorting, hints.
const make = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
const percent = share => `${(100 * share).toFixed(0)} %`;

// All images of a data set, a few at a time.
const PAGE = 8, RIGHT = 0.5;
function showImages(box) {
  const data = JSON.parse(document.getElementById(`images-${box.dataset.set}`).textContent);
  const [names, method, agreement] = box.querySelectorAll("select");
  const [before, after] = box.querySelectorAll(".pages button");
  const title = key => data.titles[key] ?? key;
  let page = 0;

  const occurring = new Set(data.images.flatMap(i => Object.values(i.maps).flatMap(m => m.classes)));
  data.names.map((name, id) => [name, id]).filter(([, id]) => occurring.has(id))
    .sort(([a], [b]) => a.localeCompare(b)).forEach(([name, id]) => names.append(new Option(name, id)));

  const results = () => {
    const kinds = method.value ? ["right", "wrong"] : data.agreements;
    agreement.replaceChildren(new Option("any", ""), ...kinds.map(kind => new Option(kind, kind)));
  };
  const keys = () => method.value ? ["truth", method.value] : Object.keys(data.images[0].maps);
  const fits = image => {
    const right = image.maps[method.value]?.right;
    const result = method.value ? (right === undefined ? "" : right >= RIGHT ? "right" : "wrong") : image.agreement;
    return (!agreement.value || result === agreement.value) &&
      (!names.value || keys().some(key => image.maps[key].classes.includes(+names.value)));
  };
  const tile = (image, key, source, right) => make("div", {},
    make("button", {type: "button", className: "tile"}, make("img", {alt: `${title(key)} of ${image.id}`, src: source})),
    make("bdi", {textContent: title(key)}), right === undefined ? "" : make("span", {className: "dim", textContent: ` ${percent(right)}`}));
  const figure = image => {
    const shown = keys(), ids = [...new Set(shown.flatMap(key => image.maps[key].classes))].filter(id => id < data.names.length);
    const legend = make("span", {className: "legend"}, ...ids.sort((a, b) => a - b).map(id => {
      const color = make("i");
      color.style.background = data.colors[id];
      return make("span", {className: "chip"}, color, make("bdi", {textContent: data.names[id]}));
    }));
    return make("figure", {className: "image"},
      make("div", {className: "gallery"}, tile(image, "image", `data:image/jpeg;base64,${image.jpeg}`),
        ...shown.map(key => tile(image, key, `data:image/png;base64,${image.maps[key].png}`, image.maps[key].right))),
      make("figcaption", {}, make("bdi", {textContent: image.id}), `: ${image.agreement}.`, make("br"), legend));
  };
  const draw = () => {
    const found = data.images.filter(fits), pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    box.querySelector("[role=status]").textContent = `${found.length} of ${data.images.length} images`;
    box.querySelector(".list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(figure));
    box.querySelector(".pages span").textContent = `page ${page + 1} of ${pages}`;
    [before.disabled, after.disabled] = [page === 0, page === pages - 1];
  };
  const turn = by => { page += by; draw(); box.scrollIntoView(); };
  before.onclick = () => turn(-1);
  after.onclick = () => turn(1);
  method.onchange = () => { results(); page = 0; draw(); };
  names.onchange = agreement.onchange = () => { page = 0; draw(); };
  box.querySelector("form").onsubmit = event => event.preventDefault();
  results();
  draw();
}
document.querySelectorAll(".all").forEach(showImages);

// A picture as large as the window; the arrow keys go through the pictures of its image.
const dialog = make("dialog"), large = make("img"), said = make("p"), colors = make("p");
const step = make("p", {className: "pages"}, make("button", {type: "button", textContent: "previous"}),
  make("button", {type: "button", textContent: "next"}), make("button", {type: "button", textContent: "close"}));
let tiles = [], place = 0;
function enlarge(index) {
  place = (index + tiles.length) % tiles.length;
  const tile = tiles[place], picture = tile.querySelector("img"), figure = tile.closest("figure");
  Object.assign(large, {src: picture.src, alt: picture.alt});
  dialog.prepend(large);
  large.style.imageRendering = getComputedStyle(picture).imageRendering;
  const share = tile.parentElement.querySelector(".dim")?.textContent ?? "";
  said.textContent = picture.alt + (share ? `: ${share.trim()} of the labelled pixels are right` : "");
  colors.replaceChildren(figure.querySelector(".legend").cloneNode(true));
}
dialog.append(said, colors, step);
document.body.append(dialog);
[step.children[0].onclick, step.children[1].onclick, step.children[2].onclick] =
  [() => enlarge(place - 1), () => enlarge(place + 1), () => dialog.close()];
dialog.addEventListener("keydown", event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) { event.preventDefault(); enlarge(place + by); }
});
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
document.addEventListener("click", event => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  tiles = [...tile.closest("figure").querySelectorAll(".tile")];
  enlarge(tiles.indexOf(tile));
  dialog.showModal();
});

// Tables whose columns can be sorted; numbers by size with the largest first, texts by the alphabet.
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.onclick = () => {
      const numeric = head.classList.contains("n");
      const order = head.getAttribute("aria-sort") ?? (numeric ? "ascending" : "descending");
      const way = order === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (numeric) return x === "" || y === "" ? (x === "") - (y === "") : way * (x - y);
        return way * x.localeCompare(y);
      };
      body.append(...[...body.rows].sort(compare));
    };
  });
});

// A table or diagram that is wider than the window says so.
function sayWhatIsCut() {
  document.querySelectorAll(".wide, .diagram").forEach(box => {
    const cut = box.scrollWidth > box.clientWidth + 1;
    if (!box.previousElementSibling?.classList.contains("cut"))
      box.before(make("p", {className: "cut dim", textContent: "This is wider than the window; scroll it sideways. →"}));
    box.previousElementSibling.style.display = cut ? "block" : "none";
    if (!box.classList.contains("classes")) cut ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex");
  });
}
sayWhatIsCut();
addEventListener("resize", sayWhatIsCut);
