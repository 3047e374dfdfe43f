// @ts-check

export const MATRIX_CSS = `
.wb-matrix { padding: 4px 2px 8px; }
.wb-matrix-head {
  display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: center; justify-content: space-between; margin-bottom: 6px;
}
.wb-heading { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 8px; min-width: 0; }
.wb-title { font-weight: 600; font-size: 13px; }
.wb-subtitle { font-size: 11px; overflow-wrap: anywhere; }
.wb-badge {
  font-size: 11px; padding: 0 6px; border-radius: 8px; border: 1px solid var(--wb-line);
  background: var(--wb-soft); color: var(--wb-muted);
}
.wb-badge:empty { display: none; }
.wb-badge[data-state=computing]::before { content: "● "; color: var(--wb-accent); animation: wb-pulse 1.2s ease-in-out infinite; }
.wb-badge[data-state=stale] { color: var(--wb-warn); border-color: currentColor; }
.wb-tools, .wb-tools .wb-group { gap: 6px 10px; }
.wb-group:empty { display: none; }
.wb .wb-tools .wb-input { width: 50px; }
.wb-zoom { gap: 4px; }
.wb-plot { position: relative; overflow: auto; scrollbar-width: thin; overscroll-behavior: auto; }
.wb-sizer { position: relative; }
.wb-stage { position: sticky; left: 0; top: 0; width: max-content; }
.wb-stage > canvas { display: block; cursor: crosshair; }
.wb .wb-stage > canvas:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: -2px; }
.wb-stage > .wb-overlay { position: absolute; inset: 0; pointer-events: none; }
.wb-plot.wb-stale { opacity: .7; }
.wb-matrix-foot { margin-top: 6px; }
.wb-said { min-height: 17px; font-size: 11px; color: var(--wb-muted); overflow-wrap: anywhere; margin-top: 2px; }
.wb-empty[data-state=error] { color: var(--wb-bad); }
.wb-empty[data-state=error]::before { content: "⚠ "; }
@keyframes wb-pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .wb * { animation: none !important; } }
`;
