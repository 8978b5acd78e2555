package check

import (
	"fmt"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// What is settled of a register, and the shorter search, change no verdict: histories of which some are right, some almost, and some wrong.
func TestRegistersAreJudgedAsSecrets(t *testing.T) {
	t.Parallel()
	verdicts := map[bool]int{}
	rapid.Check(t, func(t *rapid.T) {
		var ops []history.Op
		version, value := 0, ""
		for i := range rapid.IntRange(1, 7).Draw(t, "operations") {
			op := history.Op{Process: i, F: rapid.SampledFrom([]string{"read", "write"}).Draw(t, "f"), Outcome: history.OK, Expect: history.AnyVersion,
				Call: time.Duration(10*i - rapid.IntRange(0, 25).Draw(t, "earlier")), Return: time.Duration(10*i + rapid.IntRange(1, 25).Draw(t, "later"))}
			if op.F == "read" {
				op.Version, op.Out = version, value
			} else {
				op.In = fmt.Sprint(i)
				if rapid.Bool().Draw(t, "compare") {
					op.Expect = rapid.IntRange(0, 4).Draw(t, "expect")
				}
				takes := op.Expect == history.AnyVersion || op.Expect == version
				if rapid.IntRange(0, 2).Draw(t, "unknown") == 0 {
					op.Outcome, op.Return = history.Unknown, history.Forever
					takes = takes && rapid.Bool().Draw(t, "done")
				} else if !takes {
					op.Out = "conflict"
				}
				if takes {
					version, value = version+1, op.In
					if op.Outcome == history.OK {
						op.Version = version
					}
				}
			}
			if op.Version > 0 && rapid.IntRange(0, 15).Draw(t, "wrong") == 0 {
				op.Version = rapid.IntRange(1, 5).Draw(t, "version")
			}
			ops = append(ops, op)
		}
		judge := func(model porcupine.Model, ops []history.Op) bool {
			var list []porcupine.Operation
			for _, op := range ops {
				list = append(list, porcupine.Operation{ClientId: op.Process, Input: op, Output: op, Call: int64(op.Call), Return: int64(op.Return)})
			}
			return porcupine.CheckOperations(model, list)
		}
		want := judge(secretModel, ops)
		verdicts[want]++
		if got := judge(registerModel, settled(ops)); got != want {
			for _, op := range ops {
				t.Log(show(op))
			}
			t.Fatalf("in order: %t, and settled: %t", want, got)
		}
	})
	if verdicts[true] == 0 || verdicts[false] == 0 {
		t.Errorf("verdicts: %v", verdicts)
	}
}
