// @ts-check

export const STRIP_CSS = `
.wb-token-strip { padding: 4px 2px 8px; }
.wb-strip-head { justify-content: space-between; align-items: flex-start; margin-bottom: 6px; min-height: 26px; }
.wb-strip-note { color: var(--wb-muted); font-size: 11px; margin-top: 4px; overflow-wrap: anywhere; }
.wb-strip-note:empty { display: none; }
.wb-strip {
  position: relative; max-height: 202px; overflow-y: auto; overflow-x: hidden; padding: 4px; border: 1px solid var(--wb-line);
  border-radius: 6px; overscroll-behavior: auto; scrollbar-width: thin;
}
.wb-block { content-visibility: auto; contain-intrinsic-size: auto 400px; padding: 3px; }
.wb-numbered > .wb-block { padding-left: 42px; position: relative; }
.wb-numbered > .wb-block::before {
  content: attr(data-start) "…"; position: sticky; float: left; top: 2px; width: 38px; margin-left: -42px; text-align: right;
  font-size: 10px; line-height: 22px; color: var(--wb-muted); font-variant-numeric: tabular-nums;
}
.wb-chip {
  display: inline-block; max-width: 100%; margin: 2px; padding: 0 4px; min-width: 14px; min-height: 20px; vertical-align: top;
  font: 12px/20px var(--wb-mono); white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 3px; cursor: pointer;
  unicode-bidi: isolate; text-align: center; user-select: none;
}
.wb-chip:hover { filter: brightness(0.94); }
.wb[data-theme=dark] .wb-chip:hover { filter: brightness(1.12); }
.wb-chip.wb-sampled, .wb-swatch > .wb-sampled { box-shadow: 0 0 0 1.5px var(--wb-accent); }
.wb-chip.wb-forced, .wb-swatch > .wb-forced { box-shadow: none; outline: 1.5px dashed var(--wb-accent); outline-offset: 0; }
.wb-chip.wb-key { box-shadow: none; outline: 2px dashed var(--wb-key); outline-offset: 1px; }
.wb-chip.wb-query { box-shadow: 0 0 0 1.5px var(--wb-bg), 0 0 0 4px var(--wb-query); outline: none; position: relative; z-index: 1; }
.wb-chip.wb-query.wb-key { outline: 2px dashed var(--wb-key); outline-offset: -2px; }
.wb-chip.wb-chip:focus-visible { outline: 2px solid var(--wb-accent); outline-offset: 3px; }
`;
