// What a person would see of the pages in the frames: browser.py runs this in Chromium and reads what it leaves.

const share = (level) => (level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * share(r / 255) + 0.7152 * share(g / 255) + 0.0722 * share(b / 255);
const levels = (color) => color.match(/[\d.]+/g).map((level, at) => (color.startsWith("color(srgb") && at < 3 ? 255 * level : Number(level)));
const over = ([r, g, b, alpha = 1], below) => [r, g, b].map((level, at) => alpha * level + (1 - alpha) * below[at]);
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

const look = (frame) => {
  const page = frame.contentWindow;
  const doc = frame.contentDocument;
  const all = (query, within = doc) => [...within.querySelectorAll(query)];
  const text = (each) => each.textContent.replace(/\s+/g, " ").trim();
  const style = (each) => page.getComputedStyle(each);
  const box = (each) => each.getBoundingClientRect();
  const behind = (each) => {
    const color = levels(style(each).backgroundColor);
    const opaque = (color[3] ?? 1) === 1;
    return opaque ? color : over(color, each.parentElement ? behind(each.parentElement) : [255, 255, 255]);
  };
  const faded = (each) => (each ? Number(style(each).opacity) * faded(each.parentElement) : 1);
  const visible = (each) => each.checkVisibility({ visibilityProperty: true, opacityProperty: true });

  all("details").forEach((each) => (each.open = true));

  const contrasts = [];
  const note = (kind, each, color) => {
    const [r, g, b, alpha = 1] = levels(color);
    const below = behind(each);
    contrasts.push([kind, text(each), contrast(over([r, g, b, alpha * faded(each)], below), below)]);
  };
  const written = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  all("body *")
    .filter((each) => written(each) && visible(each) && !each.closest("svg, script, style, .skip"))
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
    links: all('a[href^="#"]').map((each) => each.hash === "" || doc.getElementById(decodeURIComponent(each.hash.slice(1))) !== null),
    asked: [...page.performance.getEntriesByType("resource").map((each) => each.name), ...(page.refused ?? [])],
    background: behind(doc.body),
    contrasts,
    ...globalThis.further?.({ page, doc, all, text, box, visible }),
  };
};

addEventListener("load", () =>
  setTimeout(() => {
    const found = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
    document.body.textContent = "";
    document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: found }));
  }, 50),
);
