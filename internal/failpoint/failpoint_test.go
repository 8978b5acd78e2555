package failpoint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// steps are the declared ones, by their identifiers.
func steps(t *testing.T) map[string]Name {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]Name{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && spec.Type != nil {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[spec.Names[0].Name] = Name(text)
		}
		return true
	})
	return declared
}

func TestAllListsEveryStep(t *testing.T) {
	t.Parallel()
	declared := map[Name]bool{}
	for _, name := range steps(t) {
		declared[name] = true
	}
	listed := map[Name]bool{}
	for _, name := range All {
		if listed[name] || !declared[name] {
			t.Errorf("All lists %q, which is there twice or not declared", name)
		}
		listed[name] = true
	}
	if len(listed) != len(declared) {
		t.Errorf("All lists %d steps of %d", len(listed), len(declared))
	}
}

// Real programs are killed at every step: by an end-to-end test, or by a nemesis.
func TestEveryStepKills(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{"../../tests/e2e/*_test.go", "../../tests/jepsen/nemesis/failpoints.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(found, err)
		}
		files = append(files, found...)
	}
	var text []byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	for identifier, name := range steps(t) {
		if !regexp.MustCompile(`failpoint\.` + identifier + `\b`).Match(text) {
			t.Errorf("nothing kills at %s", name)
		}
	}
}

// DESIGN.md lists the same steps, and no others.
func TestDesignListsEveryStep(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[Name]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `((?:seal|node|keeper|cluster|snapshot)\\.[a-z.]+)` \\|").FindAllSubmatch(text, -1) {
		listed[Name(row[1])] = true
	}
	for _, name := range All {
		if !listed[name] {
			t.Errorf("DESIGN.md does not list %q", name)
		}
	}
	if len(listed) != len(All) {
		t.Errorf("DESIGN.md lists %d steps of %d", len(listed), len(All))
	}
}
