package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The transcripts in the README are what happens: all commands are run, in one
// shell, and must print what stands below them, "…" being anything on that line.
func TestREADME(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands, wanted []string
	for _, block := range strings.Split(string(text), "```console\n")[1:] {
		transcript, _, ok := strings.Cut(block, "```")
		if !ok {
			t.Fatal("a transcript in the README does not end")
		}
		for line := range strings.Lines(transcript) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				commands, wanted = append(commands, strings.TrimSpace(command)), append(wanted, "")
				continue
			}
			wanted[len(wanted)-1] += line
		}
	}
	if len(commands) == 0 {
		t.Fatal("the README has no transcript")
	}
	c := up(t)
	here := filepath.Dir(c.dir)
	if err := os.Symlink(bin, filepath.Join(here, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(c.dir, filepath.Join(here, ".spike-dev")); err != nil {
		t.Fatal(err)
	}
	const mark = "---next---"
	script := "set +e\n"
	for i, command := range commands {
		// What was just started or opened needs a moment before the status shows it.
		if _, state, ok := strings.Cut(wanted[i], "incarnation 1: "); ok && strings.Contains(command, "spikectl status") {
			state, _, _ = strings.Cut(state, "\n")
			script += "until bin/spikectl status 2>/dev/null | grep -q 'incarnation 1: " + state + "$'; do :; done\n"
		}
		script += "{ " + command + "\n} 2>&1\necho " + mark + "\n"
	}
	shell := exec.Command("bash", "-c", script)
	shell.Dir = here
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := strings.Split(string(out), mark+"\n")
	for i, command := range commands {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(wanted[i]), "…", ".*")
		if !regexp.MustCompile(`^` + pattern + `$`).MatchString(got[i]) {
			t.Errorf("$ %s\nprinted\n%s\nthe README says\n%s", command, got[i], wanted[i])
		}
	}
}

// Every test that DESIGN.md names for an invariant exists.
func TestDesignNamesRealTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir("../..", func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		b, err := os.ReadFile(name)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(b, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(text, -1) {
		named++
		if !tests[string(m[1])] {
			t.Errorf("DESIGN.md names %s, which does not exist", m[1])
		}
	}
	for n := range 11 {
		if !strings.Contains(string(text), fmt.Sprintf("\n| %d | ", n+1)) {
			t.Errorf("invariant %d is not in the table", n+1)
		}
	}
	if named < 30 {
		t.Errorf("only %d tests are named", named)
	}
}

// docs/operations.md names every metric and every code of an answer.
func TestOperationsNamesAll(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for file, pattern := range map[string]string{
		"../../node/metrics.go": `(?:gauge|counter|histogram)\("(\w+)"`,
		"../../secret/error.go": `(?m)^\tCode\w+ +Code = "(\w+)"`,
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(pattern).FindAllSubmatch(source, -1)
		if len(names) < 10 {
			t.Errorf("%s has only %d names", file, len(names))
		}
		for _, name := range names {
			if !strings.Contains(string(text), "`"+string(name[1])+"`") && !strings.Contains(string(text), "`"+string(name[1])+"{") { // with its labels
				t.Errorf("operations.md does not name %s of %s", name[1], file)
			}
		}
	}
}
