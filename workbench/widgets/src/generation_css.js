// @ts-check

export const GENERATION_CSS = `
.wb-generation { padding: 4px 2px 8px; }
.wb-gen-head { justify-content: space-between; margin-bottom: 6px; min-height: 26px; }
.wb-gen-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 8px; min-width: 0; }
.wb-gen-title > b { font-size: 13px; }
.wb-gen-token { font-family: var(--wb-mono); unicode-bidi: isolate; overflow-wrap: anywhere; }
.wb-gen-state { color: var(--wb-warn); }
.wb-gen-state[data-state=running] { color: var(--wb-accent); }
.wb-gen-state[data-state=error] { color: var(--wb-bad); }
.wb-gen-state:empty { display: none; }
.wb-gen-body { display: flex; flex-wrap: wrap; gap: 10px 20px; align-items: flex-start; }
.wb-gen-scroll {
  flex: 3 1 540px; min-width: 0; max-height: 268px; overflow: auto; border: 1px solid var(--wb-line); border-radius: 6px;
  scrollbar-width: thin;
}
.wb-generation table.wb-gen-table { width: 100%; border-collapse: separate; border-spacing: 0; margin: 0; font-size: 12px; table-layout: fixed; color: var(--wb-fg); }
.wb-generation .wb-gen-table :is(th, td) {
  padding: 0 6px; height: 22px; text-align: left; vertical-align: middle; white-space: nowrap; overflow: hidden; border: 0; max-width: none;
}
.wb-generation .wb-gen-table thead th {
  position: sticky; top: 0; z-index: 1; background: var(--wb-bg); color: var(--wb-muted); font-weight: 400; font-size: 11px;
  border-bottom: 1px solid var(--wb-line);
}
.wb-generation .wb-gen-table tbody tr, .wb-generation .wb-gen-table thead tr, .wb-generation .wb-gen-table tfoot tr { background: none; }
.wb-generation .wb-gen-table tbody tr { cursor: pointer; }
.wb-generation .wb-gen-table tbody tr:hover { background: color-mix(in srgb, var(--wb-fg) 8%, var(--wb-bg)); }
.wb-generation .wb-gen-table tbody tr:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -2px; }
.wb-generation .wb-gen-table tbody tr.wb-path { background: color-mix(in srgb, var(--wb-accent) 13%, var(--wb-bg)); }
.wb-generation .wb-gen-table tbody tr.wb-path:hover { background: color-mix(in srgb, var(--wb-accent) 22%, var(--wb-bg)); }
.wb-generation .wb-gen-table .wb-r { text-align: right; font-variant-numeric: tabular-nums; }
.wb-generation .wb-gen-table td.wb-gen-text { font-family: var(--wb-mono); unicode-bidi: isolate; text-overflow: ellipsis; }
.wb-gen-mark { display: inline-block; width: 16px; font-family: var(--wb-ui); }
.wb-gen-table th > .wb-over { display: inline-block; min-width: 52px; text-align: right; }
.wb-generation .wb-gen-table tfoot td {
  position: sticky; bottom: 0; background: var(--wb-bg); color: var(--wb-muted); border-top: 1px solid var(--wb-line);
}
.wb-gen-meter { display: flex; align-items: center; gap: 8px; font-variant-numeric: tabular-nums; }
.wb-gen-meter > span { flex: none; width: 52px; text-align: right; }
.wb-gen-meter > i { flex: 1; height: 9px; border-radius: 2px; background: var(--wb-soft); overflow: hidden; }
.wb-gen-meter > i > i { display: block; height: 100%; min-width: 1px; border-radius: 2px; background: var(--wb-accent); }
.wb-gen-meter.wb-share > i > i { background: var(--wb-good); }
.wb-gen-meter.wb-cut > span { color: var(--wb-muted); }
.wb-gen-meter.wb-cut > i > i { display: none; }
.wb-gen-side { flex: 1 1 250px; min-width: 0; display: flex; flex-direction: column; gap: 10px; }
.wb-gen-side h4 { margin: 0 0 3px; font: 600 12px/16px var(--wb-ui); color: var(--wb-fg); }
.wb-gen-cost { display: grid; grid-template-columns: auto 1fr; gap: 1px 12px; margin: 0; font-variant-numeric: tabular-nums; }
.wb-gen-cost dt { color: var(--wb-muted); font-weight: 400; } .wb-gen-cost dd { margin: 0; overflow-wrap: anywhere; }
.wb-gen-branches { list-style: none; margin: 0; padding: 1px; display: flex; flex-wrap: wrap; gap: 4px; max-height: 150px; overflow: auto; }
.wb-gen-branches > li { margin: 0; max-width: 100%; }
.wb .wb-gen-branches button { max-width: 100%; overflow: hidden; text-overflow: ellipsis; }
.wb .wb-gen-branches button[aria-current=true] { border-color: var(--wb-accent); box-shadow: inset 0 0 0 1px var(--wb-accent); }
.wb-gen-said { min-height: 17px; font-size: 11px; color: var(--wb-muted); overflow-wrap: anywhere; margin-top: 4px; }
.wb-generation:not([data-state=running]) .wb-gen-stop { display: none; }
.wb-generation[data-state=running] :is(.wb-gen-stop, .wb-gen-state) { animation: wb-late 0s 0.3s both; }
@keyframes wb-late { from { opacity: 0; } to { opacity: 1; } }
.wb-generation[data-state=running] .wb-gen-body { opacity: 0.6; transition: opacity 0.15s 0.3s; }
.wb-generation[data-state=running] .wb-gen-table tbody tr { cursor: progress; }
`;
