package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/tests/harness"
)

// value is 256 bytes.
var value = map[string]string{"v": strings.Repeat("x", 248)}

// BenchmarkHundredThousandSecrets loads 100,000 secrets of 256 bytes into one
// peer and reports its memory and how long it takes from a kill -9 to serving
// again. The targets are 200 MiB and 2 s.
func BenchmarkHundredThousandSecrets(b *testing.B) {
	const secrets, writers = 100_000, 128
	for range b.N {
		c := up(b, "--peers", "1", "--keepers", "1")
		cl := c.client(superuser)
		var next atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for range writers {
			wg.Go(func() {
				for n := next.Add(1); n <= secrets; n = next.Add(1) {
					if _, err := cl.Put(ctx, fmt.Sprintf("tenants/%d/db-%d", n%1000, n), value, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(secrets/time.Since(begin).Seconds(), "puts/s")
		b.ReportMetric(memory(b, c, peerName(0), "VmRSS"), "MiB-after-load")
		b.ReportMetric(memory(b, c, peerName(0), "RssFile"), "MiB-mapped-files")
		c.kill(peerName(0))
		begin = time.Now()
		c.start(peerName(0))
		c.eventually("it serves again", func() error {
			_, _, err := cl.Get(ctx, "tenants/1/db-1", 0)
			return err
		})
		b.ReportMetric(time.Since(begin).Seconds(), "s-to-serving")
		b.ReportMetric(memory(b, c, peerName(0), "VmRSS"), "MiB-after-restart")
		if s, err := status(cl); err != nil || s.Secrets != secrets {
			b.Fatal(s.Secrets, err)
		}
	}
}

// memory reads a figure of a process of the cluster, in MiB.
func memory(b *testing.B, c *cluster, name, figure string) float64 {
	b.Helper()
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid(name)))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, figure+":"); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024
		}
	}
	b.Fatalf("the system does not tell %s", figure)
	return 0
}

// pid finds a peer's process.
func (c *cluster) pid(name string) int {
	c.t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, cmdline := range all {
		raw, _ := os.ReadFile(cmdline)
		args := strings.Split(string(raw), "\x00")
		if len(args) < 3 || filepath.Base(args[0]) != "nexus" || args[2] != name || !strings.Contains(string(raw), c.dir) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(cmdline)))
		if err == nil {
			return pid
		}
	}
	c.t.Fatalf("no process of %s", name)
	return 0
}

// BenchmarkRequests measures reads and writes of 256 bytes through the leader,
// a follower and all peers, against a floor in the same run: a server of bare
// mutual TLS that echoes as many bytes. Client and servers share the machine.
func BenchmarkRequests(b *testing.B) {
	c := up(b)
	all := c.client(superuser)
	leader := c.leader(all)
	follower := (leader + 1) % 3
	for n := range 1000 {
		if _, err := all.Put(ctx, fmt.Sprintf("bench/%d", n), value, nil); err != nil {
			b.Fatal(err)
		}
	}
	each := []*client.Client{c.client(superuser, 0), c.client(superuser, 1), c.client(superuser, 2)}
	floor := bareTLS(b, c)
	for _, clients := range []int{1, 16, 64} {
		var floorRate float64
		b.Run(fmt.Sprintf("floor=bareTLS/clients=%d", clients), func(b *testing.B) {
			floorRate = drive(b, clients, floor)
			b.ReportMetric(floorRate, "req/s")
		})
		for _, via := range []struct {
			name string
			cl   *client.Client
		}{{"leader", c.client(superuser, leader)}, {"follower", c.client(superuser, follower)}, {"spread", nil}} {
			of := func(n int) *client.Client {
				if via.cl == nil {
					return each[n%3]
				}
				return via.cl
			}
			b.Run(fmt.Sprintf("get/via=%s/clients=%d", via.name, clients), func(b *testing.B) {
				rate := drive(b, clients, func(n int) error {
					_, _, err := of(n).Get(ctx, fmt.Sprintf("bench/%d", n%1000), 0)
					return err
				})
				b.ReportMetric(rate, "req/s")
				b.ReportMetric(rate/floorRate, "of-floor")
			})
			b.Run(fmt.Sprintf("put/via=%s/clients=%d", via.name, clients), func(b *testing.B) {
				rate := drive(b, clients, func(n int) error {
					_, err := of(n).Put(ctx, fmt.Sprintf("bench/%d", n%1000), value, nil)
					return err
				})
				b.ReportMetric(rate, "req/s")
				b.ReportMetric(rate/floorRate, "of-floor")
			})
		}
	}
}

// drive runs b.N requests from a number of clients and returns their rate.
func drive(b *testing.B, clients int, request func(n int) error) float64 {
	var next atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := request(int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(b.N) / time.Since(begin).Seconds()
}

func bareTLS(b *testing.B, c *cluster) func(int) error {
	b.Helper()
	anyone := func(spiffeid.ID) error { return nil }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }), TLSConfig: c.source("bench/server").Server(anyone, "http/1.1")}
	go server.ServeTLS(listener, "", "")
	b.Cleanup(func() { server.Close() })
	var config *tls.Config = c.source("bench/client").Client(anyone)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64}}
	body := `{"path":"bench/1","values":{"v":"` + value["v"] + `"}}`
	return func(int) error {
		response, err := web.Post("https://"+listener.Addr().String(), "application/json", strings.NewReader(body))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if n, err := io.Copy(io.Discard, response.Body); err != nil || int(n) != len(body) {
			return errors.Join(err, fmt.Errorf("%d bytes", n))
		}
		return nil
	}
}

// BenchmarkFailover takes the leader away 30 times and reports the time from each
// fault to the next acknowledged write through the survivors: killed, its
// connections break; frozen or cut off, it only falls silent.
func BenchmarkFailover(b *testing.B) {
	for _, fault := range []struct {
		name       string
		harm, mend func(c *brokenCluster, leader int) error
	}{
		{"kill", func(c *brokenCluster, leader int) error { return c.Peer(leader).Kill() },
			func(c *brokenCluster, leader int) error { return c.Peer(leader).Start() }},
		{"freeze", func(c *brokenCluster, leader int) error { return c.Peer(leader).Freeze() },
			func(c *brokenCluster, leader int) error { return c.Peer(leader).Thaw() }},
		{"cut", func(c *brokenCluster, leader int) error {
			c.Links.Partition([]int{(leader + 1) % 3, (leader + 2) % 3})
			return nil
		},
			func(c *brokenCluster, leader int) error { c.Links.Heal(); return nil }},
	} {
		b.Run(fault.name, func(b *testing.B) {
			c := broken(b, harness.Options{Voters: 3, Links: true})
			cl := c.client(harness.Superuser)
			var rest [3]*client.Client
			for i := range rest {
				rest[i] = c.client(harness.Superuser, (i+1)%3, (i+2)%3)
			}
			var times []float64
			for range max(b.N, 30) {
				leader := c.leader(cl)
				if _, err := rest[leader].Put(ctx, "failover", value, nil); err != nil { // connected, before the clock runs
					b.Fatal(err)
				}
				begin := time.Now()
				c.must(fault.harm(c, leader))
				if _, err := rest[leader].Put(ctx, "failover", value, nil); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(begin).Seconds())
				c.must(fault.mend(c, leader))
				c.eventually("all serve", func() error { return c.Whole(ctx, cl) })
			}
			slices.Sort(times)
			b.ReportMetric(times[len(times)/2], "s-p50")
			b.ReportMetric(times[len(times)-1], "s-max")
		})
	}
}

// BenchmarkSteadyLoad keeps 64 clients busy through all peers, reading and writing,
// for a minute, or as long as SPIKE_BENCH_LOAD says, and reports how often
// leadership moved: it should not have.
func BenchmarkSteadyLoad(b *testing.B) {
	length := time.Minute
	if text := os.Getenv("SPIKE_BENCH_LOAD"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			b.Fatal(err)
		}
	}
	for range b.N {
		c := up(b)
		cl := c.client(superuser)
		c.leader(cl)
		before, err := status(cl)
		if err != nil {
			b.Fatal(err)
		}
		each := []*client.Client{c.client(superuser, 0), c.client(superuser, 1), c.client(superuser, 2)}
		end := time.Now().Add(length)
		var done atomic.Int64
		var wg sync.WaitGroup
		for w := range 64 {
			wg.Go(func() {
				for n := 0; time.Now().Before(end); n++ {
					path := fmt.Sprintf("steady/%d/%d", w, n%100)
					var err error
					if n < 100 || n%2 == 0 {
						_, err = each[(w+n)%3].Put(ctx, path, value, nil)
					} else {
						_, _, err = each[(w+n)%3].Get(ctx, path, 0)
					}
					if err != nil {
						b.Error(err)
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		after, err := status(cl)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(after.Term-before.Term), "elections")
		b.ReportMetric(float64(done.Load())/length.Seconds(), "req/s")
	}
}

// BenchmarkReadAfterWriteElsewhere writes through one peer of an idle cluster
// and reads at once through another, and reports the latency of that read.
func BenchmarkReadAfterWriteElsewhere(b *testing.B) {
	c := up(b)
	leader := c.leader(c.client(superuser))
	writer, reader := c.client(superuser, (leader+1)%3), c.client(superuser, (leader+2)%3)
	var times []float64
	for n := range max(b.N, 200) {
		answer, err := writer.Put(ctx, "read-after-write", map[string]string{"v": strconv.Itoa(n)}, nil)
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		_, got, err := reader.Get(ctx, "read-after-write", 0)
		if err != nil || got.Version != answer.Version {
			b.Fatalf("wrote version %d, read %d: %v", answer.Version, got.Version, err)
		}
		times = append(times, time.Since(begin).Seconds()*1000)
	}
	slices.Sort(times)
	b.ReportMetric(times[len(times)/2], "ms-p50")
	b.ReportMetric(times[len(times)*99/100], "ms-p99")
}

// BenchmarkStream encrypts and decrypts 1 GiB through a peer, and reports how fast that is, against bare mutual TLS that
// echoes in the same run, and how much the peer's memory grew at most.
func BenchmarkStream(b *testing.B) {
	const size = 1 << 30
	c := up(b)
	cl := c.client(superuser, 0)
	rate := func(b *testing.B, do func() (io.ReadCloser, error), want func(int64) bool) float64 {
		b.Helper()
		begin := time.Now()
		answer, err := do()
		if err != nil {
			b.Fatal(err)
		}
		defer answer.Close()
		n, err := io.Copy(io.Discard, answer)
		if err != nil || !want(n) {
			b.Fatal(n, err)
		}
		return float64(size) / (1 << 20) / time.Since(begin).Seconds()
	}
	anyone := func(spiffeid.ID) error { return nil }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{TLSConfig: c.source("bench/server").Server(anyone, "http/1.1"), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.CopyBuffer(struct{ io.Writer }{w}, r.Body, make([]byte, 64<<10))
	})}
	go server.ServeTLS(listener, "", "")
	defer server.Close()
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: c.source("bench/client").Client(anyone)}}
	var floor float64
	b.Run("floor=bareTLS", func(b *testing.B) {
		for range b.N {
			floor = rate(b, func() (io.ReadCloser, error) {
				response, err := web.Post("https://"+listener.Addr().String(), "application/octet-stream", io.LimitReader(zeros{}, size))
				if err != nil {
					return nil, err
				}
				return response.Body, nil
			}, func(n int64) bool { return n == size })
			b.ReportMetric(floor, "MiB/s")
		}
	})
	for _, via := range []struct {
		name string
		do   func() (io.ReadCloser, error)
		want func(int64) bool
	}{
		{"encrypt", func() (io.ReadCloser, error) { return cl.EncryptStream(ctx, io.LimitReader(zeros{}, size)) }, func(n int64) bool { return n > size }},
		{"both", func() (io.ReadCloser, error) {
			sealed, err := cl.EncryptStream(ctx, io.LimitReader(zeros{}, size))
			if err != nil {
				return nil, err
			}
			return cl.DecryptStream(ctx, sealed)
		}, func(n int64) bool { return n == size }},
	} {
		b.Run(via.name, func(b *testing.B) {
			for range b.N {
				name := peerName(0)
				os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.pid(name)), []byte("5"), 0) // forgets the highest so far
				before := memory(b, c, name, "VmRSS")
				got := rate(b, via.do, via.want)
				b.ReportMetric(got, "MiB/s")
				b.ReportMetric(got/floor, "of-floor")
				grown := memory(b, c, name, "VmHWM") - before
				b.ReportMetric(grown, "MiB-grown")
				if grown > 64 {
					b.Errorf("the peer's memory grew by %.0f MiB", grown)
				}
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
