package api

import (
	"context"
	"net/http"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/store"
)

func (s *Server) keeperRoutes(routes map[string]http.HandlerFunc) {
	st := s.cfg.Store
	routes[client.RouteKeepers] = s.get(func(ctx context.Context, r store.Request) (int, any, error) {
		list, err := st.ListKeepers(ctx, r)
		return http.StatusOK, keepersAnswer(list), err
	})
	routes[client.RouteKeepersVerify] = post(s, func(ctx context.Context, r store.Request, _ struct{}) (client.KeepersAnswer, error) {
		list, err := st.VerifyKeepers(ctx, r)
		return keepersAnswer(list), err
	})
}

func keepersAnswer(l store.KeeperList) client.KeepersAnswer {
	answer := client.KeepersAnswer{ShareSet: l.Set, PendingSet: l.Pending, Shares: l.Shares, Threshold: l.Threshold, Good: l.Good,
		Keepers: make([]client.KeeperInfo, len(l.Keepers))}
	for i, k := range l.Keepers {
		info := client.KeeperInfo{KeeperStatus: client.KeeperStatus{Name: k.Name, Index: k.Index, Health: k.Health, Detail: k.Detail, LastContact: k.Contact},
			Fetched: k.Fetched, Silence: k.Silence, Version: k.Version, Started: k.Started, Holds: []client.KeeperSlot{}, Askers: []client.KeeperAsker{}}
		if k.Index > 0 {
			info.ShareSet = l.Set
		}
		for _, h := range k.Holds {
			info.Holds = append(info.Holds, client.KeeperSlot(h))
		}
		for _, a := range k.Askers {
			info.Askers = append(info.Askers, client.KeeperAsker(a))
		}
		answer.Keepers[i] = info
	}
	return answer
}
