// What a person would see of the page in the frame: browser.py runs this in Chromium and reads what it leaves.
const frame = document.querySelector("iframe");

const share = (level) => (level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * share(r / 255) + 0.7152 * share(g / 255) + 0.0722 * share(b / 255);
const levels = (color) => color.match(/[\d.]+/g).map(Number);
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

const look = () => {
  const page = frame.contentWindow;
  const doc = frame.contentDocument;
  const all = (query, within = doc) => [...within.querySelectorAll(query)];
  const text = (each) => each.textContent.replace(/\s+/g, " ").trim();
  const style = (each) => page.getComputedStyle(each);
  const box = (each) => each.getBoundingClientRect();
  const behind = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const color = levels(style(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };

  all("details").forEach((each) => (each.open = true));

  const contrasts = [];
  const note = (kind, each, color) => contrasts.push([kind, text(each), contrast(levels(color), behind(each))]);
  const written = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  all("body *")
    .filter((each) => written(each) && !each.closest("svg, script, style, .skip"))
    .forEach((each) => note("text", each, style(each).color));
  all("svg text").forEach((each) => note("text", each, style(each).fill));
  all(".line, .full, .hollow")
    .filter((each) => !each.closest(".thin"))
    .forEach((each) => note("mark", each, style(each).color));

  const outside = (each) => {
    const [own, panel] = [box(each), box(each.ownerSVGElement)];
    return own.width && (own.left < panel.left - 1 || own.right > panel.right + 1);
  };

  const points = all(".point");
  const focused = {};
  if (points.length) {
    points[0].focus();
    focused.shown = style(points[0].querySelector(".says")).visibility;
    focused.others = all(".says").filter((each) => style(each).visibility === "visible").length;
    points[0].dispatchEvent(new page.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    focused.after = points.indexOf(doc.activeElement);
  }

  return {
    language: doc.documentElement.lang,
    title: doc.title,
    headings: all("h1, h2, h3").map((each) => [each.tagName, text(each)]),
    tops: all("section").map((each) => box(each).top),
    overflow: doc.scrollingElement.scrollWidth - doc.scrollingElement.clientWidth,
    outside: all("svg.panel text").filter(outside).map(text),
    tables: all("table").map((table) => [...table.rows].map((row) => [...row.cells].map(text))),
    panels: all("svg.panel").map((each) => [box(each).width, box(each).height, each.getAttribute("aria-label")]),
    captions: all("figure").map((each) => text(each.querySelector("figcaption"))),
    commands: all("pre").map(text),
    said: points.map((point) => point.getAttribute("aria-label")),
    stops: points.filter((point) => point.tabIndex === 0).length,
    pointed: all("svg.panel").filter((each) => each.querySelector(".point")).length,
    focused,
    links: all("a").map((each) => doc.querySelector(each.getAttribute("href")) !== null),
    asked: [...page.performance.getEntriesByType("resource").map((each) => each.name), ...page.refused],
    background: behind(doc.body),
    contrasts,
  };
};

frame.addEventListener("load", () =>
  setTimeout(() => {
    const found = JSON.stringify(look());
    document.body.textContent = "";
    document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: found }));
  }, 50),
);
