package keeper_test

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/seal/keeper"
)

// output collects what a program writes while a test reads it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

var ready = regexp.MustCompile(`msg="keeper ready" address=(\S+)`)

// The program as main runs it: flags in, a Keeper that serves, a graceful end, and no share in its log.
func TestProgram(t *testing.T) {
	a := authority(t, "spike.ist")
	socket, err := a.Add("/spike/keeper/keeper-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", socket)
	t.Setenv("SPIKE_TRUST_ROOT_NEXUS", "other.ist, spike.ist")
	t.Setenv("SPIKE_TRUST_ROOT", "ignored.ist")
	t.Setenv("SPIKE_KEEPER_TLS_PORT", "256.0.0.1:1") // the flag wins
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	done := make(chan error, 1)
	go func() {
		done <- keeper.App(&out).RunContext(ctx, []string{"keeper", "--id", "keeper-1", "--listen", "127.0.0.1:0", "--log-level", "debug"})
	}()
	var url string
	for deadline := time.Now().Add(20 * time.Second); url == ""; {
		if m := ready.FindStringSubmatch(out.String()); m != nil {
			url = "https://" + m[1]
			break
		}
		select {
		case err := <-done:
			t.Fatal(err, out.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("not ready: ", out.String())
		}
	}
	c := client(t, &running{url: url}, "keeper-1", issued(t, a, "/spike/nexus/n", time.Hour))
	secret := []byte("CANARY-CANARY-CANARY-CANARY-CANA")
	if err := c.Place(t.Context(), slot(1, 1, 1, 1), secret); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Fetch(t.Context(), slot(1, 1, 1, 1)); err != nil || !bytes.Equal(got, secret) {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, leak := range []string{"CANARY", "Q0FOQVJZ", "434f", "67 65 78"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("the log holds a share:\n%s", out.String())
		}
	}
}

func TestProgramSaysWhatIsWrong(t *testing.T) {
	a := authority(t, "spike.ist")
	socket := func(path string) string {
		s, err := a.Add(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := socket("/spike/keeper/keeper-1")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no Keeper's SVID":   {[]string{"--socket", socket("/workload/web")}, "no Keeper's"},
		"another Keeper":     {[]string{"--socket", good, "--id", "keeper-2"}, `configured as "keeper-2"`},
		"no agent":           {[]string{"--socket", "unix:///no/such.sock", "--source-timeout", "100ms"}, "start the SPIRE agent"},
		"bad trust domain":   {[]string{"--socket", good, "--trust-domain", "No Domain"}, "trust domain"},
		"empty trust domain": {[]string{"--socket", good, "--trust-domain", ","}, "no trust domain"},
		"bad cluster id":     {[]string{"--socket", good, "--cluster-id", "abc"}, "32 hex digits"},
		"bad level":          {[]string{"--socket", good, "--log-level", "loud"}, "debug, info"},
		"bad address":        {[]string{"--socket", good, "--listen", "nowhere"}, "cannot listen"},
		"argument":           {[]string{"--socket", good, "start"}, "unexpected argument"},
		"unknown flag":       {[]string{"--sockets", good}, "not defined"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := keeper.App(new(output)).RunContext(ctx, append([]string{"keeper"}, c.args...))
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
