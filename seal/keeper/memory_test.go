//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package keeper_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/internal/memscan"
	"github.com/spike-ha/spike-ha/seal/keeper"
)

const childVariable = "SPIKE_KEEPER_MEMORY_CHILD"

// TestMain makes this program a Keeper when its environment says so: one whose memory a test searches.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		fmt.Fprintln(os.Stderr, keeper.App(os.Stderr).RunContext(context.Background(), []string{"keeper", "--id", "keeper-1", "--listen", "127.0.0.1:0"}))
		return
	}
	os.Exit(m.Run())
}

// A share that another one took the place of is nowhere in a Keeper's memory, whatever it was used for; only in the form
// of the wire it may be, in the buffers of a bounded number of connections.
func TestNoShareStaysInMemoryAfterItIsReplaced(t *testing.T) {
	t.Parallel()
	a := authority(t, "spike.ist")
	socket, err := a.Add("/spike/keeper/keeper-1")
	if err != nil {
		t.Fatal(err)
	}
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), childVariable+"=1", "SPIFFE_ENDPOINT_SOCKET="+socket)
	log, err := program.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Process.Kill(); program.Wait() })
	c := client(t, &running{url: keeperURL(t, bufio.NewScanner(log))}, "keeper-1", issued(t, a, "/spike/nexus/n", time.Hour))
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}

	var raw, wire memscan.Needles
	const old, kept = 3, 1 // so many shares are replaced, and one stays
	for set := byte(1); set <= old+kept; set++ {
		share := make([]byte, 32)
		rand.Read(share)
		must(c.Place(t.Context(), slot(1, 1, set, 1), share))
		got, err := c.Fetch(t.Context(), slot(1, 1, set, 1))
		if err != nil || !bytes.Equal(got, share) {
			t.Fatal(err)
		}
		must(c.Settle(t.Context(), slot(1, 1, set, 1).Cluster, slot(1, 1, set, 1).Set, 0))
		name := "the present share"
		if set <= old {
			name = "an old share"
		}
		raw.Add(name, share)
		if set <= old {
			wire.AddExactly(name+" in base64", []byte(base64.StdEncoding.EncodeToString(share)))
		}
	}
	deadline := time.Now().Add(time.Minute)
	for {
		hits, _, err := memscan.Find(program.Process.Pid, &raw)
		must(err)
		var oldOnes []memscan.Hit
		for _, h := range hits {
			if strings.HasPrefix(h.Needle, "an old share") {
				oldOnes = append(oldOnes, h)
			}
		}
		if len(hits) == len(oldOnes) {
			t.Fatal("the search does not find the share that is there: it would find no other either")
		}
		if len(oldOnes) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(oldOnes)
		}
	}
	// Known, and so counted: what TLS and net/http read a request into and write an answer from, until it is used again.
	hits, _, err := memscan.Find(program.Process.Pid, &wire)
	must(err)
	t.Logf("%d parts of %d old shares in buffers of connections", len(hits), old)
	if most := old * 2 * 6; len(hits) > most { // of each two parts, in no more than the six buffers between a socket and the handler, both ways
		t.Errorf("%d parts of old shares in the form of the wire; at most %d are explained: %v", len(hits), most, hits)
	}
}

// keeperURL waits until the program says where it is.
func keeperURL(t *testing.T, log *bufio.Scanner) string {
	t.Helper()
	for log.Scan() {
		if m := ready.FindStringSubmatch(log.Text()); m != nil {
			go func() {
				for log.Scan() { // or it would wait for a reader
				}
			}()
			return "https://" + m[1]
		}
	}
	t.Fatal("the Keeper ended: ", log.Err())
	return ""
}
