"""How the panel looks: in the page's own colors, light or dark, and narrow where the window is."""

STYLE = """<style>
.studio .widget-inline-hbox{flex-direction:column;align-items:stretch;height:auto;width:auto;margin:0}
.studio .widget-inline-hbox .widget-label{width:auto;max-width:none;height:auto;text-align:left;
justify-content:flex-start;white-space:normal;font-weight:600}
.studio .widget-checkbox{flex-direction:row;width:auto;height:auto}
.studio .widget-checkbox .widget-label{display:none}
.studio .widget-inline-hbox>select,.studio .widget-inline-hbox>input{flex:none}
.studio .widget-inline-hbox>select{height:var(--jp-widgets-inline-height,28px)}
.studio .widget-hprogress>.progress{flex:none;height:14px}
.studio-charts{display:flex;flex-wrap:wrap;gap:8px}
.studio-charts svg{flex:1 1 420px;min-width:300px}
.studio .lm-TabBar-content,.studio .p-TabBar-content{flex-wrap:wrap}
.studio .lm-TabBar-tab,.studio .p-TabBar-tab{flex:0 0 auto!important;min-width:auto!important}
.studio td,.studio th{padding:2px 10px 2px 0;text-align:left;vertical-align:top}
.studio-samples td{min-width:6em}
.studio-help{line-height:1.3;white-space:normal;opacity:.8}
.studio-problem,.studio-alert{line-height:1.3;white-space:normal;border-left:4px solid #d1242f;padding-left:6px}
.studio-refused input,.studio-refused select{outline:2px solid #d1242f}
.studio pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;overflow:auto;border:1px solid #8886;
padding:.5em}
.studio-turn{margin:.5em 0;padding:.4em .6em;border-left:4px solid #8886}
.studio-sides{display:flex;flex-wrap:wrap;gap:8px}
.studio-sides>.studio-turn{flex:1 1 240px}
.studio-turn[data-by=tuned]{border-left-color:#2da44e}
.studio-turn[data-by=base]{border-left-style:dashed}
.studio :focus-visible{outline:2px solid #388bfd}
.studio .widget-html-content{line-height:1.4;overflow-x:auto}
</style>"""
