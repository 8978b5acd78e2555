package report

import (
	"bytes"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// page is the report for people: one file, nothing loaded from anywhere.
func (r *Run) page() ([]byte, error) {
	var b bytes.Buffer
	shown := min(12, len(r.Violations))
	err := pageTemplate.Execute(&b, map[string]any{"Run": r, "First": r.Violations[:shown], "More": r.Violations[shown:], "Charts": r.charts(), "Workloads": r.workloads()})
	return b.Bytes(), err
}

const (
	chartWidth  = 960.0
	chartHeight = 90.0
	slot        = 250 * time.Millisecond
)

type chart struct {
	Title string
	SVG   template.HTML
}

// charts are throughput and latency of each peer over time, with the faults behind them.
func (r *Run) charts() (list []chart) {
	slots := int(r.Length/slot) + 1
	for peer := history.Anybody; peer < r.Peers; peer++ {
		ok, bad := make([]float64, slots), make([]float64, slots)
		latencies := make([][]time.Duration, slots)
		for _, op := range r.Ops {
			at := int(op.Call / slot)
			if op.Peer != peer || op.Final || at >= slots {
				continue
			}
			if op.Outcome == history.OK {
				ok[at]++
				latencies[at] = append(latencies[at], op.Return-op.Call)
			} else {
				bad[at]++
			}
		}
		slow := make([]float64, slots)
		for i, l := range latencies {
			if len(l) > 0 {
				slices.Sort(l)
				slow[i] = math.Log10(1 + float64(l[len(l)*99/100])/float64(time.Millisecond))
			}
		}
		title := "clients that ask any peer"
		if peer != history.Anybody {
			title = fmt.Sprintf("clients of nexus-%d alone", peer+1)
		}
		list = append(list, chart{title, r.draw(ok, bad, slow)})
	}
	return list
}

func (r *Run) draw(ok, bad, slow []float64) template.HTML {
	var b strings.Builder
	x := func(at time.Duration) float64 {
		return chartWidth * min(1, float64(at)/float64(max(r.Length, 1)))
	}
	fmt.Fprintf(&b, `<svg viewBox="0 0 %.0f %.0f" role="img">`, chartWidth, chartHeight)
	for _, f := range r.Faults {
		fmt.Fprintf(&b, `<rect class="fault" x="%.1f" width="%.1f" y="0" height="%.0f"><title>%s</title></rect>`, x(f.Begin), max(2, x(f.End)-x(f.Begin)), chartHeight, template.HTMLEscapeString(f.What))
		fmt.Fprintf(&b, `<rect class="healing" x="%.1f" width="%.1f" y="0" height="%.0f"/>`, x(f.End), max(0, x(f.Recovered)-x(f.End)), chartHeight)
	}
	line := func(class string, values []float64, top float64) {
		if top == 0 {
			return
		}
		fmt.Fprintf(&b, `<polyline class="%s" points="`, class)
		for i, v := range values {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(time.Duration(i)*slot), chartHeight-(chartHeight-4)*min(1, v/top))
		}
		b.WriteString(`"/>`)
	}
	top := max(slices.Max(ok), slices.Max(bad))
	line("ok", ok, top)
	line("bad", bad, top)
	line("slow", slow, 4) // up to 10 s
	fmt.Fprintf(&b, `<text x="4" y="12">%.0f operations/s</text></svg>`, top*float64(time.Second)/float64(slot))
	return template.HTML(b.String()) // numbers, and what was escaped
}

type workloadRow struct {
	Name                string
	OK, Failed, Unknown int
}

func (r *Run) workloads() (rows []workloadRow) {
	at := map[string]int{}
	for _, op := range r.Ops {
		i, there := at[op.Workload]
		if !there {
			i = len(rows)
			at[op.Workload] = i
			rows = append(rows, workloadRow{Name: op.Workload})
		}
		switch op.Outcome {
		case history.OK:
			rows[i].OK++
		case history.Failed:
			rows[i].Failed++
		default:
			rows[i].Unknown++
		}
	}
	return rows
}

var pageTemplate = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.Run.Name}}: {{.Run.Verdict}}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 small { font-weight: normal; color: #666 }
.passed { color: #17693a } .VIOLATED { color: #b00020 } .invalid { color: #8a5a00 }
svg { width: 100%; border: 1px solid #ddd } svg text { font-size: 11px; fill: #666 }
.fault { fill: #f6c6c6 } .healing { fill: #fbeecb }
polyline { fill: none; stroke-width: 1.4 } .ok { stroke: #17693a } .bad { stroke: #b00020 } .slow { stroke: #4a63c8; stroke-dasharray: 2 2 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums }
iframe { width: 100%; height: 40rem; border: 1px solid #ddd }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem }
</style>
<h1 class="{{.Run.Verdict}}">{{.Run.Verdict}} <small>{{.Run.Name}}</small></h1>
<p>Nemesis {{.Run.Nemesis}}, seed {{.Run.Seed}}, build {{.Run.Build}}, {{with .Run.Config}}{{.}}, {{end}}{{.Run.When.Format "2006-01-02 15:04:05Z"}}.
{{len .Run.Faults}} faults in {{.Run.Length.Round 1000000}}; {{.Run.OK}} operations answered, {{.Run.Failed}} failed, {{.Run.Unknown}} of unknown outcome.
Clients that may ask any peer waited at most {{.Run.LongestGap.Round 1000000}} for an answer.
{{with .Run.Rows}}Rows: {{.}}. {{end}}Elections: {{.Run.Elections}}.{{with .Run.RPO}} The oldest change that was not archived was at most {{.Round 1000000}} old (RPO).{{end}}{{with .Run.LogBytes}} Bytes of each peer's Raft log: {{.}}.{{end}}</p>
{{range .First}}<pre class="VIOLATED">{{.}}</pre>{{end}}
{{with .More}}<details><summary>and {{len .}} more</summary>{{range .}}<pre class="VIOLATED">{{.}}</pre>{{end}}</details>{{end}}
{{range .Run.Invalid}}<pre class="invalid">{{.}}</pre>{{end}}
<h2>Answers over time</h2>
<p>Green: answered; red: failed or unknown; blue, dotted: 99th percentile of latency, logarithmic up to 10 s. Behind them: faults, and the time until all peers answered again.</p>
{{range .Charts}}<h3>{{.Title}}</h3>{{.SVG}}{{end}}
<h2>Faults</h2>
<table><tr><th>from</th><th>to</th><th>all answer at</th><th>longest gap</th>{{if .Run.RPO}}<th>RPO</th>{{end}}<th>what</th></tr>
{{range .Run.Faults}}<tr><td>{{.Begin.Round 1000000}}</td><td>{{.End.Round 1000000}}</td><td>{{.Recovered.Round 1000000}}</td><td>{{.Gap.Round 1000000}}</td>{{if $.Run.RPO}}<td>{{.RPO.Round 1000000}}</td>{{end}}<td>{{.What}}</td></tr>{{end}}</table>
<h2>Workloads</h2>
<table><tr><th>workload</th><th>answered</th><th>failed</th><th>unknown</th></tr>
{{range .Workloads}}<tr><td>{{.Name}}</td><td>{{.OK}}</td><td>{{.Failed}}</td><td>{{.Unknown}}</td></tr>{{end}}</table>
{{range .Run.Drawings}}<h2>{{.Name}}: the history that no order explains</h2><iframe srcdoc="{{.HTML}}"></iframe>{{end}}
</html>
`))
