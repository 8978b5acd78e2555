package share

import (
	"os"
	"strings"
	"testing"
)

func TestWrittenSharesAreRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for id := 1; id <= 3; id++ {
		name, err := Write(dir, id, &[32]byte{0: byte(id), 31: 0xff}, false)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(" " + string(raw) + "\r\n")
		if err != nil || s.ID != id || s.Shard != [32]byte{0: byte(id), 31: 0xff} {
			t.Errorf("share %d is read as %v, %v", id, s.ID, err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := Write(dir, 2, &[32]byte{}, false); err == nil {
		t.Error("a share was written over another")
	}
	if _, err := Write(dir, 2, &[32]byte{}, true); err != nil {
		t.Error(err)
	}
	if _, err := Write(dir, 4, nil, true); err == nil {
		t.Error("no share was written")
	}
	if files, err := Files(dir); err != nil || len(files) != 3 {
		t.Errorf("%v, %v", files, err)
	}
	if files, err := Files(dir + "/none"); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// FuzzParse: what is no share is refused without a word of it.
func FuzzParse(f *testing.F) {
	good := "spike:1:" + strings.Repeat("0a", 32)
	for _, seed := range []string{good, good + "\n", "spike:0:", "spike:12345:" + strings.Repeat("00", 32), strings.ToUpper(good), good + good, ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		switch {
		case err != nil && (err != errNoOne || s != Share{}):
			t.Fatalf("%v, %v", s, err)
		case err == nil && !strings.HasPrefix(strings.TrimSpace(text), "spike:"):
			t.Fatalf("%q is taken for a share", text)
		}
	})
}
