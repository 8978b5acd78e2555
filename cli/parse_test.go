package cli

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/secret"
)

func TestArrangeLetsFlagsStandAnywhere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ given, want string }{
		{"", ""},
		{"status", "status"},
		{"status --format json", "--format json status"},
		{"--format json status", "--format json status"},
		{"status --format=json", "--format=json status"},
		{"status -f json", "-f json status"},
		{"secret get a/b --version 2", "secret get --version 2 -- a/b"},
		{"secret get --version 2 a/b key", "secret get --version 2 -- a/b key"},
		{"secret -f json get a/b -v 1", "-f json secret get -v 1 -- a/b"},
		{"secret destroy a/b --yes --versions 1", "secret destroy --yes --versions 1 -- a/b"}, // --yes takes no value
		{"secret destroy --yes a/b --versions 1", "secret destroy --yes --versions 1 -- a/b"},
		{"secret put a/b k=- -y", "secret put -y -- a/b k=-"}, // unknown flags stay where they are refused
		{"secret get -- --odd -x", "secret get -- --odd -x"},
		{"secret get secret get", "secret get -- secret get"}, // arguments named like commands
		{"operator restore -", "operator restore -- -"},
		{"dev identity add workload/x --dir d", "dev identity add --dir d -- workload/x"},
		{"secret get a --help", "secret get --help -- a"},
		{"status --format", "--format status"}, // the missing value is the library's to refuse
		{"secret get --generate-bash-completion", "secret get --generate-bash-completion"},
		{"nonsense --format json", "--format json -- nonsense"},
	} {
		app := newApp(nil, io.Discard, io.Discard)
		if got := strings.Join(arrange(app, strings.Fields(test.given)), " "); got != test.want {
			t.Errorf("%q became %q, want %q", test.given, got, test.want)
		}
	}
}

// Whatever is given, no word is lost and none is made, but for one "--".
func TestArrangeKeepsEveryWord(t *testing.T) {
	t.Parallel()
	words := rapid.SampledFrom([]string{"secret", "get", "put", "status", "dev", "up", "-f", "json", "--version", "1", "--yes", "a/b", "-", "--x=y", "-q"})
	rapid.Check(t, func(t *rapid.T) {
		given := rapid.SliceOfN(words, 0, 8).Draw(t, "args")
		got := arrange(newApp(nil, io.Discard, io.Discard), given)
		count := func(list []string) map[string]int {
			m := map[string]int{}
			for _, w := range list {
				if w != "--" {
					m[w]++
				}
			}
			return m
		}
		have, want := count(got), count(given)
		for w, n := range want {
			if have[w] != n {
				t.Fatalf("%q became %q", given, got)
			}
		}
		if len(got) > len(given)+1 {
			t.Fatalf("%q became %q", given, got)
		}
	})
}

func TestParsePattern(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]secret.Pattern{
		"exact:spiffe://a/b": {Kind: secret.Exact, Text: "spiffe://a/b"},
		"prefix:":            {Kind: secret.Prefix},
		"glob:a/*":           {Kind: secret.Glob, Text: "a/*"},
		"regexp:a.*":         {Kind: secret.Regexp, Text: "a.*"},
		"^spiffe://a/.*$":    {Kind: secret.Regexp, Text: "^spiffe://a/.*$"},
	} {
		got, err := parsePattern("x", given)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", given, got, err)
		}
	}
	for _, bad := range []string{"", "a/b", "spiffe://a/b", "^a", "a$", "star:a", "Exact:a"} {
		if _, err := parsePattern("path-pattern", bad); err == nil || !strings.Contains(err.Error(), "--path-pattern") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseVersions(t *testing.T) {
	t.Parallel()
	got, err := parseVersions("1, 2,0")
	if err != nil || !slices.Equal(got, []secret.Version{1, 2, 0}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseVersions(""); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{",", "1,", "-1", "one", "1.5", "99999999999999999999"} {
		if _, err := parseVersions(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestReadValues(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readValues([]string{"a=1", "b=x=y", "c=", "d=@" + file, "e=-"}, strings.NewReader("from stdin\n"))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"a": "1", "b": "x=y", "c": "", "d": "from file\n", "e": "from stdin"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	large := strings.NewReader(strings.Repeat("x", maxValueFile+1))
	for _, bad := range [][]string{{"hunter2"}, {"=hunter2"}, {"a=hunter2", "a=hunter2"}, {"a=-", "b=-"}, {"a=@/nowhere/x"}, {"a=@" + t.TempDir()}} {
		if _, err := readValues(bad, strings.NewReader("hunter2")); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := readValues([]string{"a=-"}, large); err == nil {
		t.Error("an endless value was accepted")
	}
}

func TestIdentityPath(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"workload/web":                    "/workload/web",
		"/workload/web":                   "/workload/web",
		"spiffe://spike.ist/workload/web": "/workload/web",
		"spiffe://spike.ist/web":          "/web",
		"superuser":                       "/spike/pilot/role/superuser",
		"restore":                         "/spike/pilot/role/restore",
		"bootstrap":                       "/spike/bootstrap",
		"lite":                            "/spike/workload/role/lite",
	} {
		if got, err := identityPath(given); err != nil || got != want {
			t.Errorf("%q: %q, %v", given, got, err)
		}
	}
	for _, bad := range []string{"", "/", "web", "workload//web", "spiffe://example.org/workload/web"} {
		if got, err := identityPath(bad); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

func TestShellWords(t *testing.T) {
	t.Parallel()
	if got := shellQuote(`it's`); got != `'it'\''s'` {
		t.Error(got)
	}
	for given, want := range map[string]string{"bin/spikectl": "bin/spikectl", "": "''", "a b": "'a b'", "$x": "'$x'", "~/x": "'~/x'"} {
		if got := shellWord(given); got != want {
			t.Errorf("%q became %s, want %s", given, got, want)
		}
	}
}

func TestStepsAreAligned(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	printStep(&b, "✓", tourStep{What: "short", took: 12 * time.Millisecond})
	printStep(&b, "✓", tourStep{What: "longer — with a dash", took: 2345 * time.Millisecond})
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len([]rune(lines[0])) != len([]rune(lines[1])) || !strings.HasSuffix(lines[0], " 12ms") || !strings.HasSuffix(lines[1], " 2.3s") {
		t.Errorf("%q", lines)
	}
}

func TestExitStatuses(t *testing.T) {
	t.Parallel()
	remote := secret.Errorf(secret.CodeConflict, "refused")
	if errors.Is(remote, errLocal) || !errors.Is(local(remote), errLocal) || local(nil) != nil {
		t.Error("a remote failure is told from a local one by its mark")
	}
	if got := secret.CodeOf(local(remote)); got != secret.CodeConflict {
		t.Error("marking loses the code:", got)
	}
}
