// @ts-check

export const RUN_BAR_CSS = `
.wb-run-bar { padding: 4px 2px 6px; }
.wb-top { display: flex; align-items: flex-end; justify-content: space-between; gap: 12px; margin-bottom: 5px; }
.wb-model { color: var(--wb-muted); font-size: 11px; line-height: 16px; overflow-wrap: anywhere; min-width: 0; }
.wb .wb-examples { flex: none; max-width: 110px; height: 22px; font-size: 11px; margin-left: auto; }
.wb .wb-prompt {
  display: block; width: 100%; resize: none; padding: 6px 8px; font: 13px/18px var(--wb-mono); min-height: 50px;
  background: var(--jp-layout-color0, Field); border: 1px solid var(--wb-field-line); border-radius: 4px;
}
.wb .wb-prompt::placeholder { color: var(--wb-muted); opacity: 1; }
.wb-controls { margin-top: 8px; gap: 8px 14px; }
.wb-settings { display: contents; }
.wb-buttons { display: inline-flex; gap: 6px; }
.wb button.wb-primary:not(:disabled) { background: var(--wb-accent); border-color: var(--wb-accent); color: #fff; font-weight: 600; }
.wb[data-theme=dark] button.wb-primary:not(:disabled) { color: #000; }
.wb button.wb-primary:hover:not(:disabled) { background: color-mix(in srgb, var(--wb-accent) 86%, #000); }
.wb[data-theme=dark] button.wb-primary:hover:not(:disabled) { background: color-mix(in srgb, var(--wb-accent) 86%, #fff); }
.wb button.wb-primary { min-width: 64px; }
.wb-check { cursor: pointer; color: var(--wb-fg) !important; }
.wb-check input { accent-color: var(--wb-accent); }
.wb-status { margin-top: 8px; }
.wb-statusline { display: flex; align-items: baseline; gap: 6px; min-height: 18px; }
.wb-words { overflow-wrap: anywhere; min-width: 0; }
.wb-clock { margin-left: auto; white-space: nowrap; }
.wb-statusline > .wb-muted { white-space: nowrap; padding-left: 6px; }
.wb-sign { width: 14px; text-align: center; color: var(--wb-muted); flex: none; }
.wb-status[data-state=running] .wb-sign { color: var(--wb-accent); animation: wb-pulse 1.2s ease-in-out infinite; }
.wb-status[data-state=done] .wb-sign { color: var(--wb-good); }
.wb-status[data-state=stopped] .wb-sign { color: var(--wb-warn); }
.wb-status[data-state=error] :is(.wb-sign, .wb-words) { color: var(--wb-bad); }
.wb-progress { height: 3px; margin-top: 4px; background: var(--wb-line); border-radius: 2px; overflow: hidden; }
.wb-progress > i {
  display: block; height: 100%; width: 0; background: var(--wb-accent); border-radius: 2px; transition: width 80ms linear;
}
.wb-status[data-state=done] .wb-progress > i { background: var(--wb-good); }
.wb-status:is([data-state=stopped], [data-state=error]) .wb-progress > i { background: var(--wb-muted); }
.wb-progress.wb-unknown > i { width: 30% !important; animation: wb-slide 1.2s ease-in-out infinite; }
.wb-progress.wb-off { visibility: hidden; }
@keyframes wb-pulse { 50% { opacity: .35; } }
@keyframes wb-slide { from { margin-left: -30%; } to { margin-left: 100%; } }
@media (prefers-reduced-motion: reduce) { .wb * { animation: none !important; transition: none !important; } }
`;
