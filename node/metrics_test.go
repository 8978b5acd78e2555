package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/node"
	"github.com/spike-ha/spike-ha/node/nodetest"
	"github.com/spike-ha/spike-ha/secret"
)

func withMetrics(_ int, c *node.Config) { c.MetricsListen = "127.0.0.1:0" }

// fetch asks peer i's metrics port.
func fetch(t *testing.T, c *nodetest.Cluster, i int, path string) (status int, body string) {
	t.Helper()
	_, metrics := c.Node(i).Addresses()
	response, err := http.Get("http://" + metrics + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

// scrape reads peer i's metrics: samples by name and labels.
func scrape(t *testing.T, c *nodetest.Cluster, i int) map[string]float64 {
	t.Helper()
	status, text := fetch(t, c, i, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	samples := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if at := strings.LastIndexByte(lines.Text(), ' '); at > 0 && lines.Text()[0] != '#' {
			v, err := strconv.ParseFloat(lines.Text()[at+1:], 64)
			if err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			samples[lines.Text()[:at]] = v
		}
	}
	return samples
}

// The documents and the shipped alerts and dashboard name the metrics that there
// are, and the documents all of them; they follow Prometheus' conventions.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := nodetest.Booted(t, nodetest.Options{Peers: 1, Configure: func(i int, c *node.Config) {
		withMetrics(i, c)
		c.Archive = "file://" + dir
	}})
	var text string
	nodetest.Eventually(t, "the background has looked", func() error {
		if _, text = fetch(t, c, 0, "/metrics"); !strings.Contains(text, "spike_keepers_good") || !strings.Contains(text, "spike_raft_failure_tolerance") || !strings.Contains(text, "spike_archive_snapshot") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	if _, _, err := c.Client(nodetest.Role("superuser")).Get(context.Background(), "a", 0); secret.CodeOf(err) != secret.CodeNotFound {
		t.Fatal(err)
	}
	_, text = fetch(t, c, 0, "/metrics")
	exist := map[string]bool{}
	histograms := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (spike_\w+) (\w+)$`).FindAllStringSubmatch(text, -1) {
		name, kind := m[1], m[2]
		exist[name] = true
		histograms[name] = kind == "histogram"
		if (kind == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, kind)
		}
		if kind == "histogram" && !strings.HasSuffix(name, "_seconds") {
			t.Errorf("%s is a histogram", name)
		}
	}
	if len(exist) < 50 {
		t.Errorf("%d metrics exist", len(exist))
	}
	name := regexp.MustCompile(`\bspike_[a-z0-9_]+`)
	named := func(file string, only *regexp.Regexp) map[string]bool {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, m := range only.FindAll(b, -1) {
			n := name.FindString(string(m))
			for _, part := range []string{"_bucket", "_count", "_sum"} {
				if base, ok := strings.CutSuffix(n, part); ok && histograms[base] {
					n = base
				}
			}
			found[n] = true
			if !exist[n] {
				t.Errorf("%s names %s, which does not exist", file, n)
			}
		}
		return found
	}
	alerts, err := os.ReadFile("../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var groups struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(alerts))
	decoder.KnownFields(true)
	if err := decoder.Decode(&groups); err != nil || len(groups.Groups) != 1 || len(groups.Groups[0].Rules) < 8 {
		t.Fatalf("alerts.yaml: %+v, %v", groups, err)
	}
	for _, r := range groups.Groups[0].Rules {
		if r.Alert == "" || !name.MatchString(r.Expr) || r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("an alert without name, metric, severity or summary: %+v", r)
		}
	}
	board, err := os.ReadFile("../deploy/grafana/spike-ha.json")
	if err != nil || !json.Valid(board) {
		t.Errorf("the dashboard is not JSON (%v)", err)
	}
	named("../deploy/prometheus/alerts.yaml", name)
	named("../deploy/grafana/spike-ha.json", name)
	documented := named("../docs/operations.md", regexp.MustCompile("`spike_[a-z0-9_]+(\\{[a-z,]+\\})?`"))
	for n := range exist {
		if !documented[n] {
			t.Errorf("docs/operations.md does not name %s", n)
		}
	}
}

// Figures follow what happens at a peer, and nothing in them names a secret, a
// policy or an identity.
func TestMetricsMove(t *testing.T) {
	t.Parallel()
	c := nodetest.Booted(t, nodetest.Options{Configure: withMetrics})
	ctx := context.Background()
	leader := c.Leader()
	i := (leader + 1) % 3
	su := c.Client(nodetest.Role("superuser"), i)
	const canary = "canary-7f3a"
	before := scrape(t, c, i)
	if _, err := su.Put(ctx, canary+"/path", map[string]string{canary: canary}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := su.PutPolicy(ctx, client.Policy{Name: canary, SPIFFEID: secret.Pattern{Kind: secret.Exact, Text: "spiffe://" + nodetest.Domain + "/workload/" + canary},
		Path: secret.Pattern{Kind: secret.Prefix, Text: canary + "/"}, Permissions: []string{"read"}}); err != nil {
		t.Fatal(err)
	}
	app := c.Client("/workload/"+canary, i)
	if _, _, err := app.Get(ctx, canary+"/path", 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := app.Get(ctx, canary+"/none", 0); secret.CodeOf(err) != secret.CodeNotFound {
		t.Fatal(err)
	}
	if _, err := app.Put(ctx, canary+"/path", nil, nil); secret.CodeOf(err) != secret.CodeDenied {
		t.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Source("/workload/" + canary).Client(nodetest.Anyone)}}
	defer web.CloseIdleConnections()
	response, err := web.Post(c.Address(i)+"/v1/"+canary+"?action="+canary, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()

	after := scrape(t, c, i)
	for name, least := range map[string]float64{
		`spike_api_requests_total{code="200",route="native_write"}`:  1,
		`spike_api_requests_total{code="200",route="native_policy"}`: 1,
		`spike_api_requests_total{code="200",route="native_read"}`:   1,
		`spike_api_requests_total{code="404",route="native_read"}`:   1,
		`spike_api_requests_total{code="403",route="native_write"}`:  1,
		`spike_api_requests_total{code="400",route="other"}`:         1,
		`spike_api_request_seconds_count{route="native_read"}`:       2,
		`spike_api_request_seconds_sum{route="native_read"}`:         1e-9,
		`spike_raft_proposals_total{outcome="applied"}`:              2,
		`spike_raft_proposed_bytes_total`:                            20,
		`spike_raft_proposal_seconds_count`:                          2,
		`spike_raft_apply_seconds_count`:                             2,
		`spike_raft_read_round_seconds_count`:                        1,
		`spike_state_secrets`:                                        1,
		`spike_state_policies`:                                       1,
		`spike_state_bytes`:                                          1,
		`spike_audit_records`:                                        6,
	} {
		if got := after[name] - before[name]; got < least {
			t.Errorf("%s moved by %v, want %v at least", name, got, least)
		}
	}
	for name, want := range map[string]float64{"spike_core_unsealed": 1, "spike_core_ready": 1, "spike_core_draining": 0, "spike_raft_has_leader": 1,
		"spike_raft_members": 3, "spike_audit_failed": 0, "spike_audit_failures_total": 0, `spike_alarm{kind="disk-stalls"}`: 0} {
		if got, ok := after[name]; !ok || got != want {
			t.Errorf("%s is %v (%v), want %v", name, got, ok, want)
		}
	}
	if _, ok := after["spike_raft_failure_tolerance"]; ok && after["spike_raft_is_leader"] == 0 {
		t.Error("a follower says how many may fail")
	}
	nodetest.Eventually(t, "the leader says how many may fail, and how the Keepers are", func() error {
		leader = c.Leader()
		s := scrape(t, c, leader)
		if s["spike_raft_failure_tolerance"] != 1 || s["spike_keepers_good"] != 3 || s["spike_keepers_threshold"] != 2 || s[`spike_keeper_good{keeper="keeper-1"}`] != 1 {
			return fmt.Errorf("tolerance %v, %v Keepers good", s["spike_raft_failure_tolerance"], s["spike_keepers_good"])
		}
		return nil
	})
	for _, at := range []int{0, 1, 2} {
		_, text := fetch(t, c, at, "/metrics")
		for _, hidden := range []string{canary, "spiffe://", "/workload", "superuser", nodetest.Domain} {
			if bytes.Contains([]byte(text), []byte(hidden)) {
				t.Errorf("the metrics contain %q", hidden)
			}
		}
	}
	c.StopKeeper(0)
	c.Stop((leader + 1) % 3)
	nodetest.Eventually(t, "the leader notices what is lost", func() error {
		leader = c.Leader() // it may have moved
		s := scrape(t, c, leader)
		if tolerance, ok := s["spike_raft_failure_tolerance"]; !ok || tolerance != 0 || s["spike_keepers_good"] != 2 || s[`spike_keeper_good{keeper="keeper-1"}`] != 0 {
			return fmt.Errorf("tolerance %v, %v Keepers good", tolerance, s["spike_keepers_good"])
		}
		return nil
	})
}
