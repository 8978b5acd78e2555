package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/spike-ha/spike-ha/cluster/internal/peerpb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares b with a file of annotated hex: what follows # is comment.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte("# "+name+"\n"+hex.Dump(b)), 0o644))
		return
	}
	file, err := os.ReadFile(path)
	must(t, err)
	if want := "# " + name + "\n" + hex.Dump(b); string(file) != want {
		t.Errorf("%s changed: data on disks and peers of the released version would not be understood.\nnow:\n%s", path, want)
	}
}

func TestGoldenForms(t *testing.T) {
	golden(t, "envelope", encodeEnvelope([][]byte{[]byte("one"), {}, bytes.Repeat([]byte{0xff}, 200)}))

	marker, err := encodeMarker(&peerpb.Marker{
		Phase: peerpb.Phase_PHASE_READY, ClusterId: []byte("0123456789abcdef"), Incarnation: 3, Self: "n1",
		Peers: []*peerpb.Member{{Id: "n1", Address: "a:1"}, {Id: "n2", Address: "b:2"}},
	})
	must(t, err)
	golden(t, "marker", marker)

	golden(t, "hello", hello{[16]byte([]byte("0123456789abcdef")), 3, "n1", "n2"}.encode())
	golden(t, "snapshot-head", snapshotHeader(258, 7))

	dir := t.TempDir()
	s, err := openLog(dir, 1<<20)
	must(t, err)
	when := time.Unix(1_700_000_000, 5).UTC()
	must(t, s.StoreLog(&raft.Log{Index: 258, Term: 7, Type: raft.LogCommand, Data: encodeEnvelope([][]byte{[]byte("x")}), AppendedAt: when}))
	var back raft.Log
	must(t, s.GetLog(258, &back))
	if back.Extensions != nil || back.Term != 7 || !back.AppendedAt.Equal(when) {
		t.Errorf("read back %+v", back)
	}
	must(t, s.bolt.Close())
	db, err := bbolt.Open(filepath.Join(dir, logFile), 0o600, nil)
	must(t, err)
	must(t, db.View(func(tx *bbolt.Tx) error {
		k, v := tx.Bucket([]byte("logs")).Cursor().First()
		golden(t, "log-entry", append(append([]byte(nil), k...), v...))
		return nil
	}))
	must(t, db.Close())
}

// Any change of what the checksum covers is noticed.
func TestEntryChecksum(t *testing.T) {
	t.Parallel()
	s, err := openLog(t.TempDir(), 1<<20)
	must(t, err)
	defer func() { must(t, s.bolt.Close()) }()
	good := raft.Log{Index: 5, Term: 3, Type: raft.LogCommand, Data: []byte("data")}
	for name, spoil := range map[string]func(*raft.Log){
		"term":      func(l *raft.Log) { l.Term++ },
		"type":      func(l *raft.Log) { l.Type = raft.LogBarrier },
		"data":      func(l *raft.Log) { l.Data = []byte("dat") },
		"no sum":    func(l *raft.Log) { l.Extensions = nil },
		"short sum": func(l *raft.Log) { l.Extensions = l.Extensions[:10] },
	} {
		must(t, s.StoreLog(&good))
		var l raft.Log
		must(t, s.bolt.GetLog(5, &l))
		spoil(&l)
		must(t, s.bolt.StoreLog(&l))
		var corrupt *ErrCorruptLog
		if err := s.GetLog(5, &l); !errors.As(err, &corrupt) || corrupt.Index != 5 {
			t.Errorf("%s: %v", name, err)
		}
	}
	var l raft.Log
	if err := s.GetLog(6, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("no entry: %v", err)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add(encodeEnvelope([][]byte{[]byte("one"), {}, []byte("three")}))
	f.Add([]byte{1, 1, 0x80, 0})
	f.Add([]byte{2, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		commands, err := decodeEnvelope(b)
		if err != nil {
			return
		}
		if again := encodeEnvelope(commands); !bytes.Equal(again, b) {
			t.Errorf("%x was read, and is written as %x", b, again)
		}
	})
}

func FuzzMarker(f *testing.F) {
	b, _ := encodeMarker(&peerpb.Marker{Phase: 1, ClusterId: make([]byte, 16), Incarnation: 1, Self: "a", Peers: []*peerpb.Member{{Id: "a"}}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMarker(b); (m == nil) != (err != nil) {
			t.Errorf("%v, %v", m, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{[16]byte{1}, 2, "a", "b"}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, h.encode()) {
			t.Errorf("%x was read as %x", b, h.encode())
		}
	})
}

func FuzzSnapshotHead(f *testing.F) {
	f.Add(snapshotHeader(1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, term, err := readSnapshotHead(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, snapshotHeader(i, term)) {
			t.Errorf("%x", b)
		}
	})
}

// rawDial shakes hands with a peer's port as somebody.
func rawDial(t *testing.T, who *security, address, alpn string) (*tls.Conn, error) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	cfg := &tls.Config{Certificates: []tls.Certificate{who.cert}, InsecureSkipVerify: true, NextProtos: []string{alpn}}
	c := tls.Client(conn, cfg)
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := c.Handshake(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return c, nil
}

// refused is whether the other side ends the connection without a word, or with
// want.
func refused(c *tls.Conn, want byte) bool {
	b, err := io.ReadAll(c)
	return errors.Is(err, os.ErrDeadlineExceeded) == false && (len(b) == 0 && want == helloOK || len(b) == 1 && b[0] == want)
}

func TestWrongIdentityIsRefusedOnAccept(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.startAll()
	c.leader()
	n := c.nodes["n1"]
	address := c.peers[0].Address
	id, inc, _ := n.Identity()
	good := hello{id, inc, "n2", "n1"}

	for name, who := range map[string]*security{
		"not a member": c.ca.identity(t, "n9"),
		"another CA":   newAuthority(t).identity(t, "n2"),
	} {
		conn, err := rawDial(t, who, address, alpnRaft)
		if err == nil {
			_, _ = conn.Write(hello{id, inc, "n9", "n1"}.encode())
			if !refused(conn, helloOK) {
				t.Errorf("%s: was let in", name)
			}
		}
	}
	n2 := c.ca.identity(t, "n2")
	if conn, err := rawDial(t, n2, address, "http/1.1"); err == nil && !refused(conn, helloOK) {
		t.Error("an unknown protocol was let in")
	}
	for name, tc := range map[string]struct {
		hello []byte
		code  byte
	}{
		"says it is another": {hello{id, inc, "n3", "n1"}.encode(), helloNotYou},
		"wants another":      {hello{id, inc, "n2", "n3"}.encode(), helloNotMe},
		"another cluster":    {hello{[16]byte{1}, inc, "n2", "n1"}.encode(), helloForeign},
		"another life":       {hello{id, inc + 1, "n2", "n1"}.encode(), helloForeign},
		"nonsense":           {bytes.Repeat([]byte("x"), 40), helloBad},
	} {
		conn, err := rawDial(t, n2, address, alpnRaft)
		must(t, err)
		_, err = conn.Write(tc.hello)
		must(t, err)
		if !refused(conn, tc.code) {
			t.Errorf("%s: not refused as it should be", name)
		}
	}
	conn, err := rawDial(t, n2, address, alpnRaft)
	must(t, err)
	_, err = conn.Write(good.encode())
	must(t, err)
	var code [1]byte
	if _, err := io.ReadFull(conn, code[:]); err != nil || code[0] != helloOK {
		t.Errorf("the right one: %d, %v", code[0], err)
	}
	if conn.ConnectionState().Version != tls.VersionTLS13 {
		t.Error("not TLS 1.3")
	}
}

// trusting is a Security that forgets to check whom it dials: the port does.
type trusting struct{ *security }

func (s trusting) Client(string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{s.cert}, InsecureSkipVerify: true}
}

func TestWrongIdentityIsRefusedOnDial(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1", "n2", "n3")
	c.tune = func(id string, cfg *Config) {
		switch id {
		case "n2": // answers as n3 does
			cfg.Security = c.ca.identity(t, "n3")
		case "n1":
			cfg.Security = trusting{cfg.Security.(*security)}
		}
	}
	c.startAll()
	n := c.nodes["n1"]
	for _, alpn := range []string{alpnRaft, alpnRPC} {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if _, err := n.port.dial(ctx, "n2", alpn, nil); !errors.Is(err, ErrWrongPeer) {
			t.Errorf("%s: n2 showed n3's certificate: %v", alpn, err)
		}
		if _, err := n.port.dial(ctx, "n9", alpn, nil); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("%s: stranger: %v", alpn, err)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.nodes["n3"].port.dial(ctx, "n2", alpnRPC, nil); err == nil || !strings.Contains(err.Error(), "n3") {
		t.Errorf("n3's own check: %v", err)
	}
	if s := n.Status(); s.Formed {
		t.Error("formed with an impostor")
	}
}

// Silent strangers cannot use up the port.
func TestHandshakesAreBounded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, "n1")
	c.startAll()
	c.leader()
	address := c.peers[0].Address
	closed := make(chan struct{}, 4*maxHandshakes)
	for range 2 * maxHandshakes {
		conn, err := net.Dial("tcp", address)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			_, _ = io.ReadAll(conn)
			closed <- struct{}{}
		}()
	}
	for range maxHandshakes { // those over the limit at once, the others at the deadline
		select {
		case <-closed:
		case <-time.After(3 * time.Second):
			t.Fatal("too many handshakes are open")
		}
	}
}
