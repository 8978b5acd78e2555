package recoveryfile_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/seal"
	"github.com/spike-ha/spike-ha/seal/recoveryfile"
)

var update = flag.Bool("update", false, "write the golden files anew")

func header() recoveryfile.Header {
	return recoveryfile.Header{
		Cluster: seal.ClusterRef{ID: [16]byte{1, 2, 3}, Incarnation: 7}, Set: [16]byte{0xab, 0xcd},
		Index: 2, Shares: 5, Threshold: 3, Created: time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC),
	}
}

func share() []byte { return bytes.Repeat([]byte{0xc5}, 32) }

type holder struct {
	to       recoveryfile.Recipient
	identity age.Identity
	secret   string // as age writes an identity
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func holders(t testing.TB) map[string]holder {
	x := must[*age.X25519Identity](t)(age.GenerateX25519Identity())
	pq := must[*age.HybridIdentity](t)(age.GenerateHybridIdentity())
	words := "correct horse battery staple"
	recipient := must[recoveryfile.Recipient](t)
	return map[string]holder{
		"x25519":     {recipient(recoveryfile.ParseRecipient(x.Recipient().String())), x, x.String()},
		"hybrid":     {recipient(recoveryfile.ParseRecipient(pq.Recipient().String())), pq, pq.String()},
		"passphrase": {recipient(recoveryfile.PassphraseOf(words, 4)), must[*age.ScryptIdentity](t)(age.NewScryptIdentity(words)), words},
	}
}

func TestFileOfEachKind(t *testing.T) {
	t.Parallel()
	all := holders(t)
	for name, h := range all {
		raw := must[[]byte](t)(recoveryfile.Write(header(), share(), h.to))
		if bytes.Contains(raw, []byte(hex.EncodeToString(share()))) || bytes.Contains(raw, share()) {
			t.Fatalf("%s: the share stands in the file", name)
		}
		file := must[*recoveryfile.File](t)(recoveryfile.Parse(raw))
		want := header()
		want.Fingerprint, want.For = seal.ShareFingerprint(want.Set, want.Index, share()), h.to.String()
		if file.Header != want {
			t.Errorf("%s: header %+v, want %+v", name, file.Header, want)
		}
		if file.ForPassphrase() != (name == "passphrase") {
			t.Errorf("%s: for a passphrase: %v", name, file.ForPassphrase())
		}
		if got := must[[]byte](t)(file.Open(h.identity)); !bytes.Equal(got, share()) {
			t.Errorf("%s: another share came out", name)
		}
		for other, o := range all {
			if other == name {
				continue
			}
			if _, err := file.Open(o.identity); !errors.Is(err, recoveryfile.ErrIdentity) {
				t.Errorf("%s with the identity of %s: %v", name, other, err)
			}
		}
		crlf := bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
		if got, err := must[*recoveryfile.File](t)(recoveryfile.Parse(crlf)).Open(h.identity); err != nil || !bytes.Equal(got, share()) {
			t.Errorf("%s: after a mail program: %v", name, err)
		}
	}
}

// Whatever single byte of a file is changed or left out, no other share comes out of it, and no other header is believed.
func TestAlteredFilesAreRefused(t *testing.T) {
	t.Parallel()
	h := holders(t)["x25519"]
	raw := must[[]byte](t)(recoveryfile.Write(header(), share(), h.to))
	original := must[*recoveryfile.File](t)(recoveryfile.Parse(raw)).Header
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(raw)
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		switch rapid.SampledFrom([]string{"flip", "cut", "drop"}).Draw(t, "how") {
		case "flip":
			b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "cut":
			b = b[:at]
		case "drop":
			b = append(b[:at], b[at+1:]...)
		}
		file, err := recoveryfile.Parse(b)
		if err != nil {
			if !errors.Is(err, recoveryfile.ErrFormat) {
				t.Fatalf("another error: %v", err)
			}
			return
		}
		got, err := file.Open(h.identity)
		switch {
		case err == nil && (!bytes.Equal(got, share()) || file.Header != original):
			t.Fatalf("an altered file was believed: %+v", file.Header)
		case err != nil && !errors.Is(err, recoveryfile.ErrDamaged) && !errors.Is(err, recoveryfile.ErrIdentity):
			t.Fatalf("another error: %v", err)
		}
	})
}

// A header that was edited by hand, consistently, contradicts what is inside.
func TestEditedHeader(t *testing.T) {
	t.Parallel()
	h := holders(t)["hybrid"]
	raw := string(must[[]byte](t)(recoveryfile.Write(header(), share(), h.to)))
	for from, to := range map[string]string{"share: 2 of": "share: 3 of", "incarnation: 7": "incarnation: 8", "cluster: 01": "cluster: 02", ", 3 needed": ", 2 needed"} {
		file := must[*recoveryfile.File](t)(recoveryfile.Parse([]byte(strings.Replace(raw, from, to, 1))))
		if _, err := file.Open(h.identity); !errors.Is(err, recoveryfile.ErrDamaged) {
			t.Errorf("%s: %v", to, err)
		}
	}
	for from, to := range map[string]string{
		"share: 2 of 5": "share: 6 of 5", "share: 2": "share: 02", ", 3 needed": ", 6 needed", "incarnation: 7": "incarnation: 0", "incarnation: 7\n": "incarnation: 99999999999999999999\n",
		"created: 2026": "created: 9926-", "format 1": "format 2", "\n\n": "\n\nx\n", "cluster: ": "cluster:  ",
	} {
		if _, err := recoveryfile.Parse([]byte(strings.Replace(raw, from, to, 1))); !errors.Is(err, recoveryfile.ErrFormat) {
			t.Errorf("%q: %v", to, err)
		}
	}
	if _, err := recoveryfile.Parse(make([]byte, recoveryfile.MaxSize+1)); !errors.Is(err, recoveryfile.ErrFormat) {
		t.Error(err)
	}
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	pq := must[*age.HybridIdentity](t)(age.GenerateHybridIdentity())
	for _, bad := range []string{"", "age1", "age1pq1", "AGE-SECRET-KEY-1", "ssh-ed25519 AAAA", "age1\n", pq.Recipient().String()[:200], strings.Repeat("a", 5000), pq.String()} {
		if _, err := recoveryfile.ParseRecipient(bad); !errors.Is(err, recoveryfile.ErrRecipient) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if _, err := recoveryfile.Passphrase("too short"); err == nil || strings.Contains(err.Error(), "too short") {
		t.Errorf("a short passphrase: %v", err)
	}
	for index, h := range map[int]recoveryfile.Header{0: header(), 6: header(), 300: header()} {
		h.Index = index
		if _, err := recoveryfile.Write(h, share(), holders(t)["x25519"].to); !errors.Is(err, recoveryfile.ErrFormat) {
			t.Errorf("share %d of 5: %v", index, err)
		}
	}
}

// Files that were once written open for good.
func TestGoldenFiles(t *testing.T) {
	t.Parallel()
	for name, h := range holders(t) {
		golden := filepath.Join("testdata", name+".age")
		key := filepath.Join("testdata", name+".key")
		if *update {
			if err := errors.Join(os.MkdirAll("testdata", 0o755),
				os.WriteFile(golden, must[[]byte](t)(recoveryfile.Write(header(), share(), h.to)), 0o644), os.WriteFile(key, []byte(h.secret+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		file := must[*recoveryfile.File](t)(recoveryfile.Parse(must[[]byte](t)(os.ReadFile(golden))))
		secret := must[[]byte](t)(os.ReadFile(key))
		var identity age.Identity
		if name == "passphrase" {
			identity = must[*age.ScryptIdentity](t)(age.NewScryptIdentity(strings.TrimSpace(string(secret))))
		} else {
			identity = must[[]age.Identity](t)(age.ParseIdentities(bytes.NewReader(secret)))[0]
		}
		if got := must[[]byte](t)(file.Open(identity)); !bytes.Equal(got, share()) {
			t.Errorf("%s: another share came out", name)
		}
		want := header()
		want.Fingerprint, want.For = file.Fingerprint, file.For
		if file.Header != want {
			t.Errorf("%s: %+v", name, file.Header)
		}
	}
}

func FuzzParse(f *testing.F) {
	for name := range holders(f) {
		b, err := os.ReadFile(filepath.Join("testdata", name+".age"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	identity := must[*age.X25519Identity](f)(age.GenerateX25519Identity())
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := recoveryfile.Parse(b)
		if err != nil {
			return
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n"))
		if !strings.HasPrefix(text, file.Header.String()) {
			t.Fatalf("the header has another form: %+v", file.Header)
		}
		if _, err := file.Open(identity); err == nil {
			t.Fatal("it opened for a stranger")
		}
	})
}
