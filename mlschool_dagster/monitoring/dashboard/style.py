"""How the page looks, by day and by night."""

STYLE = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#222;--quiet:#666;--line:#e3e3e0;
--bad:#c2384b;--doubt:#9a6a00;--good:#228833;--unknown:#8a8a86;--mark:#4477aa}
@media(prefers-color-scheme:dark){:root{--back:#16181b;--card:#1e2125;--text:#dcdcda;--quiet:#a0a09c;
--line:#33373c;--bad:#f0808e;--doubt:#e0b040;--good:#5fb870;--unknown:#8a8a86;--mark:#7fa8d4}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif}
body>*{max-width:76rem;margin-inline:auto;padding-inline:1.5rem}
header{padding-top:1.8rem}
h1{font-size:1.6rem;margin:0}
h2{font-size:1.2rem;margin:0}
h3{font-size:.95rem;margin:1.2rem 0 .2rem;font-weight:600}
p{margin:.3rem 0}
.quiet{color:var(--quiet);font-size:.88rem}
.verdict{font-size:1.15rem;font-weight:600;margin:.8rem 0}
.verdict.finding{color:var(--bad)}
.verdict.doubt,.doubt>.state,nav.tiles .doubt .state{color:var(--doubt)}
nav.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.7rem;
padding-block:.6rem}
nav.tiles a{display:block;background:var(--card);border:1px solid var(--line);border-radius:.5rem;
border-top:3px solid var(--unknown);padding:.6rem .8rem;color:inherit;text-decoration:none}
nav.tiles a:hover,nav.tiles a:focus-visible{border-color:var(--mark)}
nav.tiles a.fine{border-top-color:var(--good)}
nav.tiles a.doubt{border-top-color:var(--doubt)}
nav.tiles a.finding{border-top-color:var(--bad)}
nav.tiles b{display:block;font-size:1.05rem;line-height:1.3;font-weight:600;overflow-wrap:anywhere;
margin:.15rem 0}
nav.tiles span{display:block;font-size:.8rem;color:var(--quiet)}
.state{font-size:.8rem;font-weight:600;color:var(--unknown);white-space:nowrap}
nav.tiles .state{white-space:normal}
.state::before{content:"\\25cb\\a0"}
.doubt>.state::before,nav.tiles .doubt .state::before{content:"\\25c6\\a0"}
.fine>.state{color:var(--good)}.fine>.state::before{content:"\\25cf\\a0"}
.finding>.state{color:var(--bad)}.finding>.state::before{content:"\\25b2\\a0"}
nav.tiles .fine .state{color:var(--good)}nav.tiles .fine .state::before{content:"\\25cf\\a0"}
nav.tiles .finding .state{color:var(--bad)}nav.tiles .finding .state::before{content:"\\25b2\\a0"}
.ranges{position:sticky;top:0;z-index:5;background:var(--back);padding-block:.5rem;display:flex;
gap:.4rem;align-items:center;border-bottom:1px solid var(--line)}
button{font:inherit;font-size:.85rem;color:inherit;background:var(--card);padding:.15rem .8rem;
border:1px solid var(--line);border-radius:1rem;cursor:pointer}
button[aria-pressed=true]{border-color:var(--mark);color:var(--mark)}
main{padding-bottom:3rem}
section{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:1.1rem 1.2rem;margin-top:1rem;scroll-margin-top:3.5rem}
section>h2{display:flex;gap:.8rem;align-items:baseline;flex-wrap:wrap}
section>.answer{font-size:1.02rem}
.plot{width:100%}
.table{overflow-x:auto;max-height:24rem}
table{border-collapse:collapse;font-size:.85rem;width:100%}
th,td{border-bottom:1px solid var(--line);text-align:left;padding:.25rem 1rem .25rem 0;
vertical-align:top}
th{color:var(--quiet);font-weight:600;position:sticky;top:0;background:var(--card)}
td.number{font-variant-numeric:tabular-nums}
@media(max-width:600px){body>*{padding-inline:.6rem}section{padding:.8rem .6rem}
nav.tiles{grid-template-columns:repeat(auto-fit,minmax(7rem,1fr))}}
"""
