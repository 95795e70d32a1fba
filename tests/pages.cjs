// node pages.cjs BROWSER SHOTS PAGE…: what a browser sees of pages at three widths, light and dark, as JSON. SHOTS: a folder for pictures, or "".
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core");
const path = require("path");
const { pathToFileURL } = require("url");

function seen() {
  const width = document.documentElement.clientWidth;
  const narrow = Array.from(document.querySelectorAll("td, th, p, li, figcaption, summary")).filter((cell) => {
    const text = cell.innerText.trim();
    return cell.getClientRects().length && text.length > 60 && text.split(/\s+/).length > 8;
  }).map((cell) => {
    const style = getComputedStyle(cell), ruler = document.createElement("span");
    ruler.textContent = "0".repeat(10);
    ruler.style.cssText = "position: absolute; visibility: hidden; white-space: nowrap";
    const small = cell.querySelector("small") || cell;
    small.appendChild(ruler);
    const letter = ruler.getBoundingClientRect().width / 10;
    ruler.remove();
    const room = (cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)) / letter;
    return { room: Math.floor(room), text: cell.innerText.slice(0, 40) };
  });
  const form = document.querySelector("form.filter");
  let filtered = null;
  if (form) {
    const rows = Array.from(document.querySelectorAll("tr[data-verdict]"));
    form.headline.click();
    filtered = !form.hidden && rows.every((row) => (row.getClientRects().length > 0) === (row.dataset.headline === "1"));
    form.headline.click();
  }
  return {
    over: document.documentElement.scrollWidth > width,
    height: document.documentElement.scrollHeight,
    narrow, filtered,
    contents: document.querySelectorAll("nav.contents a").length,
    parts: document.querySelectorAll("h2").length,
    zoomed: Array.from(document.querySelectorAll(".panels img")).map((image) =>
      getComputedStyle(image).imageRendering === "pixelated" ? image.getBoundingClientRect().width / image.naturalWidth : 0),
    links: Array.from(new Set(Array.from(document.querySelectorAll("a[href]")).map((a) => a.getAttribute("href")))),
  };
}

function printed() {
  const shown = (what) => Array.from(document.querySelectorAll(what)).some((one) => one.getClientRects().length > 0);
  return {
    background: getComputedStyle(document.body).backgroundColor,
    form: shown("form.filter"), contents: shown("nav.contents"),
    over: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  };
}

(async () => {
  const [browser, shots, ...pages] = process.argv.slice(2);
  const chrome = await chromium.launch({ executablePath: browser, args: ["--no-sandbox", "--disable-gpu"], timeout: 0 });
  const out = {};
  for (const file of pages) {
    out[file] = [];
    for (const width of [400, 800, 1400]) {
      for (const colorScheme of ["light", "dark"]) {
        const context = await chrome.newContext({ viewport: { width, height: 1000 }, colorScheme, offline: true });
        const page = await context.newPage();
        page.setDefaultTimeout(0); // a loaded machine takes its time
        await page.goto(pathToFileURL(file).href);
        const one = { screen: `${width} ${colorScheme}`, ...(await page.evaluate(seen)) };
        await page.addScriptTag({ path: axe });
        const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
        one.axe = found.violations.filter((v) => ["serious", "critical"].includes(v.impact))
          .map((v) => `${v.id}: ${v.nodes.length} times, ${v.nodes[0].html.slice(0, 160)}`);
        if (width === 1400 && colorScheme === "dark") {
          await page.setViewportSize({ width: 940, height: 700 }); // Letter, its long side, without margins
          await page.emulateMedia({ media: "print", colorScheme });
          one.print = await page.evaluate(printed);
          await page.emulateMedia({ media: "screen", colorScheme });
          await page.setViewportSize({ width, height: 1000 });
        }
        if (shots) {
          const name = path.basename(path.dirname(file));
          await page.screenshot({ path: path.join(shots, `${name}-${width}-${colorScheme}.png`), fullPage: true });
        }
        out[file].push(one);
        await context.close();
      }
    }
  }
  await chrome.close();
  console.log(JSON.stringify(out));
})().catch((error) => { console.error(error); process.exit(1); });
