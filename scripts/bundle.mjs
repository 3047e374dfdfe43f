// Bundles each widget of workbench/widgets/src into one self-contained ES module under workbench/widgets/static.
// anywidget loads a module as a blob, so it may import nothing; and the page may ask no other host for anything.
import { build } from "esbuild";
import { readFileSync, readdirSync } from "node:fs";

const source = "workbench/widgets/src";
const target = "workbench/widgets/static";
const widgets = readdirSync(source).filter((name) => name.endsWith(".widget.js"));

await build({
  entryPoints: Object.fromEntries(widgets.map((name) => [name.replace(".widget.js", ""), `${source}/${name}`])),
  outdir: target,
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
});

for (const name of widgets) {
  const file = `${target}/${name.replace(".widget.js", ".js")}`;
  const text = readFileSync(file, "utf8");
  const found = text.match(/https?:\/\/|^import .*$|\bimport\(/m);
  if (found) {
    console.error(`${file}: '${found[0]}' is not allowed: a bundle imports nothing and names no other host.`);
    process.exit(1);
  }
}
