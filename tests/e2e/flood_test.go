package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/identity"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// One identity floods a peer with more requests than it takes at once. It is told
// so, early and with a time to come back; another identity's requests, one after
// the other and never repeated, are all answered. It is not parallel, and nobody is elected
// because a machine is busy: beside others on the same cores it would test who gets the processor.
func TestFlood(t *testing.T) {
	c := broken(t, harness.Options{Voters: 3, Args: []string{"--heartbeat", "5s"}})
	flooded := 0
	honest := honestClient(c)
	read := func(n int) {
		if err := honest(c.APIs(flooded)[0], n); err != nil {
			t.Error(err)
		}
	}
	f := flood(c, flooded)
	for n := 0; n < 200 || f.refused.Load() == 0 && !t.Failed(); n++ {
		read(n)
	}
	f.stop()
	t.Logf("of the flood %d requests were answered, %d refused, and %d too late", f.served.Load(), f.refused.Load(), f.late.Load())
	if f.other.Load() > 0 {
		t.Errorf("%d requests of the flood had another end: %v", f.other.Load(), f.example.Load())
	}
}

// BenchmarkFlood reports the latency of who sends one request at a time, alone and
// while another identity floods the same peer, and the ratio.
func BenchmarkFlood(b *testing.B) {
	c := broken(b, harness.Options{Voters: 3})
	honest := honestClient(c)
	measure := func() (p50, p99 float64) {
		var times []float64
		for n := range max(b.N, 500) {
			begin := time.Now()
			if err := honest(c.APIs(0)[0], n); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(begin).Seconds()*1000)
		}
		slices.Sort(times)
		return times[len(times)/2], times[len(times)*99/100]
	}
	quiet50, quiet99 := measure()
	f := flood(c, 0)
	c.eventually("the flood is refused", func() error {
		if f.refused.Load() == 0 {
			return fmt.Errorf("%d requests were answered", f.served.Load())
		}
		return nil
	})
	flooded50, flooded99 := measure()
	f.stop()
	b.ReportMetric(quiet50, "ms-p50-quiet")
	b.ReportMetric(quiet99, "ms-p99-quiet")
	b.ReportMetric(flooded50, "ms-p50-flooded")
	b.ReportMetric(flooded99, "ms-p99-flooded")
	b.ReportMetric(flooded50/quiet50, "p50-ratio")
}

// honestClient makes one request at a time, a write now and then, and repeats none.
func honestClient(c *brokenCluster) func(api string, n int) error {
	source, err := c.Source(ctx, harness.Superuser)
	c.must(err)
	c.t.Cleanup(func() { source.Close() })
	cl := web(source)
	return func(api string, n int) error {
		if n%10 > 0 {
			return readOnce(cl, api)
		}
		status, body, err := post(cl, api+client.RouteSecretPut, `{"path":"honest","values":{"n":"1"}}`)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d: %s", status, body)
		}
		return err
	}
}

func post(cl *http.Client, url, request string) (status int, body []byte, err error) {
	response, err := cl.Post(url, "application/json", strings.NewReader(request))
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

type flooding struct {
	served, refused, other atomic.Int64
	late                   atomic.Int64 // waited in vain for their time, as they may on a busy machine
	example                atomic.Value // of other
	stop                   func()
}

// flood sends more requests at once than one identity may have running and
// waiting, until it is stopped.
func flood(c *brokenCluster, peer int) *flooding {
	source, err := c.Source(ctx, "/spike/pilot/role/operator")
	c.must(err)
	c.t.Cleanup(func() { source.Close() })
	const atOnce = 700
	f := &flooding{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	cl := web2(source)
	for n := range atOnce {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				status, body, err := post(cl, c.APIs(peer)[0]+client.RouteSecretPut, fmt.Sprintf(`{"path":"flood/%d","values":{"n":"1"}}`, n))
				switch {
				case err == nil && status == http.StatusOK:
					f.served.Add(1)
				case err == nil && (status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout):
					f.late.Add(1)
				case err == nil && status == http.StatusTooManyRequests:
					f.refused.Add(1)
					select {
					case <-done:
					case <-time.After(50 * time.Millisecond): // it comes back sooner than it was told
					}
				default:
					f.other.Add(1)
					f.example.Store(fmt.Sprint(status, string(body), err))
				}
			}
		})
	}
	f.stop = func() { close(done); wg.Wait(); cl.CloseIdleConnections() }
	return f
}

// web2 is web with many requests on each connection.
func web2(as *identity.Source) *http.Client {
	config := as.Client(func(spiffeid.ID) error { return nil }, "h2")
	return &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}
