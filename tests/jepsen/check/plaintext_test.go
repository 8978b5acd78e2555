package check_test

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spike-ha/spike-ha/tests/jepsen/check"
)

func TestPlaintext(t *testing.T) {
	t.Parallel()
	const word = "mark-of-a-value"
	for name, c := range map[string]struct {
		text  string
		found bool
	}{
		"nothing":              {"a mark of something else", false},
		"as it is":             {"{\"v\":\"" + word + "\"}", true},
		"hexadecimal":          {hex.EncodeToString([]byte("x" + word)), true},
		"large hexadecimal":    {strings.ToUpper(hex.EncodeToString([]byte(word + "x"))), true},
		"base64":               {base64.StdEncoding.EncodeToString([]byte(word + " and more")), true},
		"base64, a byte later": {base64.StdEncoding.EncodeToString([]byte("." + word + " and more")), true},
		"base64, two later":    {base64.URLEncoding.EncodeToString([]byte("\xff\xfe" + word)), true},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a", "b", "c"), []byte("before "+c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := check.Plaintext([]string{word}, dir)
		if (len(r.Violations) > 0) != c.found || r.Undecided != "" || r.Checked != 1 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := check.Plaintext([]string{word}, filepath.Join(t.TempDir(), "nowhere")); r.Undecided == "" {
		t.Error("a directory that is not there was searched")
	}
}
