"""What charts look like, light and dark: one stylesheet for dashboard and report."""

from __future__ import annotations

from typing import Final

STYLESHEET: Final = """\
:root {
  --es-ground: #ffffff; --es-ink: #16202a; --es-muted: #52606d; --es-rule: #c6ced6;
  --es-a: #0072B2; --es-b: #D55E00; --es-nothing: #8b96a1; --es-hatch: #ffffff;
  --es-step0: #dce9f2; --es-step1: #a9cbe3; --es-step2: #6aa5cf; --es-step3: #2f7fb5; --es-step4: #D55E00;
  --es-on2: #0a1218; --es-on3: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --es-ground: #12181f; --es-ink: #e8edf2; --es-muted: #a7b3bf; --es-rule: #3b4754;
    --es-a: #3d9bd6; --es-b: #ec7a2b; --es-nothing: #7d8995; --es-hatch: #12181f;
    --es-step0: #1d2b38; --es-step1: #1f4663; --es-step2: #27668f; --es-step3: #3d9bd6; --es-step4: #ec7a2b;
    --es-on2: #ffffff; --es-on3: #0a1218;
  }
}
.es-chart { margin: 0 0 1.25rem; }
.es-chart figcaption { margin: 0 0 .5rem; color: var(--es-muted); }
.es-chart figcaption strong { color: var(--es-ink); }
.es-svg { display: block; overflow: visible; max-width: 100%; }
.es-text { fill: var(--es-ink); font-family: inherit; font-variant-numeric: tabular-nums; }
.es-strong { font-weight: 600; }
.es-muted { fill: var(--es-muted); color: var(--es-muted); }
.es-axis { stroke: var(--es-muted); stroke-width: 1; }
.es-grid { stroke: var(--es-rule); stroke-width: 1; }
.es-limit { stroke: var(--es-ink); stroke-width: 1.5; stroke-dasharray: 2 3; }
.es-nothing { stroke: var(--es-nothing); stroke-width: 1.5; stroke-dasharray: 1 5; }
.es-a-line { stroke: var(--es-a); } .es-b-line { stroke: var(--es-b); }
.es-a-fill { fill: var(--es-a); stroke: var(--es-a); } .es-b-fill { fill: var(--es-b); stroke: var(--es-b); }
.es-a-soft { fill: var(--es-a); opacity: .55; } .es-a-band { fill: var(--es-a); }
.es-c0 { fill: var(--es-a); stroke: var(--es-a); } .es-c1 { fill: var(--es-b); stroke: var(--es-b); }
.es-o0 { stroke: var(--es-a); } .es-o1 { stroke: var(--es-b); }
.es-hatch-line { stroke: var(--es-hatch); stroke-width: 2; }
.es-segment { stroke: var(--es-ground); }
.es-empty { stroke: var(--es-nothing); stroke-dasharray: 4 4; }
.es-rail { stroke: var(--es-a); stroke-width: 4; } .es-rail-open { stroke: var(--es-rule); }
.es-phase { stroke-width: 2; fill: var(--es-ground); stroke: var(--es-nothing); }
.es-phase-passed { fill: var(--es-a); stroke: var(--es-a); }
.es-phase-failed { fill: var(--es-b); stroke: var(--es-b); }
.es-phase-active, .es-phase-paused { stroke: var(--es-a); stroke-width: 3; }
.es-glyph-passed, .es-glyph-failed { fill: var(--es-ground); font-weight: 700; }
.es-glyph-active, .es-glyph-paused { fill: var(--es-a); } .es-glyph-pending { fill: var(--es-muted); }
.es-cell { stroke: var(--es-ground); } .es-over { fill: var(--es-ground); font-weight: 700; }
.es-nodata { fill: var(--es-rule); stroke: var(--es-ground); }
.es-step0 { fill: var(--es-step0); } .es-step1 { fill: var(--es-step1); } .es-step2 { fill: var(--es-step2); }
.es-step3 { fill: var(--es-step3); } .es-step4 { fill: var(--es-step4); }
.es-legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .5rem 0 0; padding: 0; font-size: .875rem;
}
.es-legend svg { vertical-align: -2px; }
.es-numbers { margin-top: .25rem; font-size: .875rem; }
.es-numbers summary { cursor: pointer; color: var(--es-muted); min-height: 24px; }
.es-numbers table { border-collapse: collapse; overflow-wrap: normal; }
.es-numbers caption { text-align: left; color: var(--es-muted); }
.es-numbers th, .es-numbers td {
  text-align: left; padding: .15rem .75rem .15rem 0; border-bottom: 1px solid var(--es-rule);
  font-variant-numeric: tabular-nums;
}
.es-rest { fill: var(--es-nothing); }
.es-hollow { fill: var(--es-ground); }
.es-halo { paint-order: stroke; stroke: var(--es-ground); stroke-width: 3px; }
.es-confusion { border-collapse: separate; border-spacing: 1px; font-size: .8125rem; overflow-wrap: normal; }
.es-confusion th { font-weight: 400; color: var(--es-muted); padding: .1rem .35rem; white-space: nowrap; }
.es-confusion th[scope=row] {
  position: sticky; left: 0; background: var(--es-ground); text-align: left; max-width: 9rem; overflow: hidden;
  text-overflow: ellipsis;
}
.es-confusion td {
  min-width: 2rem; padding: .1rem .25rem; text-align: center; white-space: nowrap; font-variant-numeric: tabular-nums;
}
.es-confusion td.es-step0 { background: var(--es-step0); } .es-confusion td.es-step1 { background: var(--es-step1); }
.es-confusion td.es-step2 { background: var(--es-step2); color: var(--es-on2); }
.es-confusion td.es-step3 { background: var(--es-a); color: var(--es-on3); }
.es-confusion td.es-moved { outline: 2px solid var(--es-b); outline-offset: -2px; font-weight: 600; }
.es-scroll { overflow-x: auto; max-width: 100%; }
.es-spark { display: inline-block; vertical-align: middle; }
"""
