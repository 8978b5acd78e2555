package api

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"

	"github.com/spike-ha/spike-ha/api/client"
	"github.com/spike-ha/spike-ha/secret"
	"github.com/spike-ha/spike-ha/store"
)

func (s *Server) nativeRoutes(routes map[string]http.HandlerFunc) {
	st := s.cfg.Store
	routes[client.RouteSecretPut] = post(s, func(ctx context.Context, r store.Request, q client.PutRequest) (client.ChangeAnswer, error) {
		return changed(st.PutSecret(ctx, r, q.Path, q.Values, q.ExpectedVersion))
	})
	routes[client.RouteSecretGet] = post(s, func(ctx context.Context, r store.Request, q client.PathRequest) (client.SecretAnswer, error) {
		v, err := st.GetSecret(ctx, r, q.Path, q.Version)
		return client.SecretAnswer{Values: v.JSON, Version: v.Version, Created: v.Created, Index: v.Index}, err
	})
	routes[client.RouteSecretList] = post(s, func(ctx context.Context, r store.Request, q client.ListRequest) (client.ListAnswer, error) {
		keys, index, err := st.ListPrefix(ctx, r, q.Prefix)
		return client.ListAnswer{Keys: keys, Index: index}, err
	})
	routes[client.RouteSecretDelete] = post(s, func(ctx context.Context, r store.Request, q client.VersionsRequest) (client.ChangeAnswer, error) {
		return changed(st.DeleteVersions(ctx, r, q.Path, q.Versions))
	})
	routes[client.RouteSecretUndelete] = post(s, func(ctx context.Context, r store.Request, q client.VersionsRequest) (client.ChangeAnswer, error) {
		return changed(st.UndeleteVersions(ctx, r, q.Path, q.Versions))
	})
	routes[client.RouteSecretDestroy] = post(s, func(ctx context.Context, r store.Request, q client.VersionsRequest) (client.ChangeAnswer, error) {
		return changed(st.DestroyVersions(ctx, r, q.Path, q.Versions))
	})
	routes[client.RouteSecretPurge] = post(s, func(ctx context.Context, r store.Request, q client.PathRequest) (client.ChangeAnswer, error) {
		return changed(st.PurgeSecret(ctx, r, q.Path))
	})
	routes[client.RouteSecretMetadata] = post(s, func(ctx context.Context, r store.Request, q client.PathRequest) (client.MetadataAnswer, error) {
		m, err := st.GetMetadata(ctx, r, q.Path, q.Version, true)
		return metadataAnswer(m), err
	})
	routes[client.RouteSecretTransact] = post(s, func(ctx context.Context, r store.Request, q client.TransactRequest) (client.TransactAnswer, error) {
		done, err := st.Transact(ctx, r, operations(q.Operations))
		if err != nil {
			return client.TransactAnswer{}, err
		}
		answer := client.TransactAnswer{Index: done.Index, Operations: make([]client.OperationAnswer, len(done.Operations))}
		for i, o := range done.Operations {
			answer.Operations[i] = client.OperationAnswer{Op: q.Operations[i].Op, Path: q.Operations[i].Path, Version: o.Version, Versions: o.Versions}
		}
		return answer, nil
	})
	routes[client.RouteSecretWatch] = s.watch()
	routes[client.RoutePolicyPut] = post(s, func(ctx context.Context, r store.Request, q client.Policy) (client.ChangeAnswer, error) {
		permissions, err := secret.ParsePermissions(q.Permissions)
		if err != nil { // told only to those who may write policies
			return client.ChangeAnswer{}, st.RefusePolicy(ctx, r, q.Name, err)
		}
		return changed(st.PutPolicy(ctx, r, secret.Policy{Name: q.Name, SPIFFEID: q.SPIFFEID, Path: q.Path, Permissions: permissions}))
	})
	routes[client.RoutePolicyGet] = post(s, func(ctx context.Context, r store.Request, q client.NameRequest) (client.Policy, error) {
		p, err := st.GetPolicy(ctx, r, q.Name)
		return policyAnswer(p), err
	})
	routes[client.RoutePolicyDelete] = post(s, func(ctx context.Context, r store.Request, q client.NameRequest) (client.ChangeAnswer, error) {
		return changed(st.DeletePolicy(ctx, r, q.Name))
	})
	routes[client.RoutePolicyList] = post(s, func(ctx context.Context, r store.Request, _ struct{}) (client.PoliciesAnswer, error) {
		list, err := st.ListPolicies(ctx, r)
		answer := client.PoliciesAnswer{Policies: make([]client.Policy, len(list))}
		for i, p := range list {
			answer.Policies[i] = policyAnswer(p)
		}
		return answer, err
	})
	routes[client.RouteSettings] = s.get(func(ctx context.Context, r store.Request) (int, any, error) {
		settings, err := st.GetSettings(ctx, r)
		return http.StatusOK, settingsAnswer(settings), err
	})
	routes[client.RouteSettingsPut] = post(s, func(ctx context.Context, r store.Request, q client.SettingsRequest) (client.Settings, error) {
		settings, err := st.PutSettings(ctx, r, store.SettingsChange(q))
		return settingsAnswer(settings), err
	})
	routes[client.RouteCipherEncrypt] = s.transfer(func(ctx context.Context, r store.Request, dst io.Writer, src io.Reader) error {
		w, err := st.EncryptStream(ctx, r, dst)
		if err != nil {
			return err
		}
		if err := pump(w, src); err != nil {
			return err
		}
		return w.Close()
	})
	routes[client.RouteCipherDecrypt] = s.transfer(func(ctx context.Context, r store.Request, dst io.Writer, src io.Reader) error {
		opened, err := st.DecryptStream(ctx, r, src)
		if err != nil {
			return err
		}
		return pump(dst, opened)
	})
	routes[client.RouteInit] = post(s, func(ctx context.Context, r store.Request, q client.InitRequest) (struct{}, error) {
		return struct{}{}, st.Initialise(ctx, r, q.Shares, q.Threshold, q.AllowSingleShare)
	})
	routes[client.RouteMemberAdd] = post(s, func(ctx context.Context, r store.Request, q client.AddMemberRequest) (struct{}, error) {
		return struct{}{}, st.ChangeMembers(ctx, r, store.MemberChange{Kind: store.AddMember, ID: q.ID, Address: q.Address})
	})
	for route, kind := range map[string]store.MemberChangeKind{
		client.RouteMemberPromote: store.PromoteMember, client.RouteMemberDemote: store.DemoteMember,
		client.RouteMemberRemove: store.RemoveMember, client.RouteMemberTransfer: store.TransferLeadership,
		client.RouteMemberDrain: store.DrainMember, client.RouteMemberUndrain: store.UndrainMember,
	} {
		routes[route] = post(s, func(ctx context.Context, r store.Request, q client.MemberRequest) (struct{}, error) {
			return struct{}{}, st.ChangeMembers(ctx, r, store.MemberChange{Kind: kind, ID: q.ID})
		})
	}
	routes[client.RouteRecover] = post(s, func(ctx context.Context, r store.Request, q client.RecoverRequest) (client.RecoverAnswer, error) {
		files, err := st.RecoverFiles(ctx, r, q.Recipients, q.OneHolder)
		answer := client.RecoverAnswer{Files: make([]client.RecoveryFile, len(files))}
		for i, f := range files {
			answer.Files[i] = client.RecoveryFile{Share: f.Index, Name: f.Name, For: f.For, Content: string(f.Content)}
		}
		return answer, err
	})
	routes[client.RouteRestore] = post(s, func(ctx context.Context, r store.Request, q client.RestoreRequest) (client.RestoreAnswer, error) {
		defer clear(q.Share)
		share := store.RecoveryShare{Index: q.Index}
		known := func(id []byte, to *[16]byte) bool { return len(id) == 0 || copy(to[:], id) == len(id) && len(id) == 16 }
		if copy(share.Bytes[:], q.Share) != len(q.Share) || len(q.Share) != 32 || !known(q.Cluster, &share.Cluster) || !known(q.Set, &share.Set) {
			share = store.RecoveryShare{} // refused as a share that cannot be, to those who may give one
		}
		defer clear(share.Bytes[:])
		p, err := st.Restore(ctx, r, share)
		return client.RestoreAnswer{Collected: p.Collected, Remaining: p.Remaining, Given: p.Given, Restored: p.Restored}, err
	})
	for route, sealed := range map[string]bool{client.RouteSeal: true, client.RouteUnseal: false} {
		routes[route] = post(s, func(ctx context.Context, r store.Request, q client.SealRequest) (struct{}, error) {
			return struct{}{}, st.SetSealed(ctx, r, sealed, q.Peer)
		})
	}
	routes[client.RouteKeys] = s.get(func(ctx context.Context, r store.Request) (int, any, error) {
		keys, err := st.Keys(ctx, r)
		return http.StatusOK, keysAnswer(keys), err
	})
	routes[client.RouteKeyPrune] = post(s, func(ctx context.Context, r store.Request, q client.PruneKeysRequest) (client.PruneKeysAnswer, error) {
		pruned, err := st.PruneKeys(ctx, r, q.Before)
		return client.PruneKeysAnswer{Pruned: pruned}, err
	})
	routes[client.RouteKeyRotate] = post(s, func(ctx context.Context, r store.Request, q client.RotateRequest) (struct{}, error) {
		return struct{}{}, st.RotateKeys(ctx, r, q.Purposes)
	})
	routes[client.RouteKeyRekey] = post(s, func(ctx context.Context, r store.Request, q client.RekeyRequest) (struct{}, error) {
		id, err := hex.DecodeString(q.ID)
		if err != nil || len(id) != 16 {
			return struct{}{}, secret.Invalid("id", "give 16 random bytes in hex, the same in each repetition")
		}
		return struct{}{}, st.Rekey(ctx, r, store.Rekeying{ID: [16]byte(id), Shares: q.Shares, Threshold: q.Threshold, Keepers: q.Keepers,
			AllowSingleShare: q.AllowSingleShare, Force: q.Force})
	})
	routes[client.RouteKeyRekeyCancel] = post(s, func(ctx context.Context, r store.Request, _ struct{}) (client.CancelAnswer, error) {
		set, err := st.CancelRekey(ctx, r)
		return client.CancelAnswer{ShareSet: set}, err
	})
	routes[client.RouteStatus] = s.get(func(ctx context.Context, r store.Request) (int, any, error) {
		if err := st.Inspect(ctx, r); err != nil {
			return 0, nil, err
		}
		return http.StatusOK, s.cfg.Status(ctx), nil
	})
	routes[client.RouteHealth] = s.health
	s.keeperRoutes(routes)
	routes[client.RouteSnapshotRestore] = s.restoreLive()
	s.archiveRoutes(routes)
}

// begin authenticates and checks the form of a native request. It answers itself
// when it returns false.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, method string) (store.Request, bool) {
	request, err := s.open(w, r)
	switch {
	case err != nil:
		s.sendFailure(w, request, err)
	case r.Method != method:
		w.Header().Set("Allow", method)
		s.stamp(w, request)
		send(w, http.StatusMethodNotAllowed, client.Failure{Code: secret.CodeInvalid, Message: "this route takes " + method, Request: request.ID})
	case r.URL.RawQuery != "":
		s.sendFailure(w, request, secret.Invalid("query", "native routes take none; write it into the body"))
	default:
		return request, true
	}
	return request, false
}

// post makes a handler of an operation: a strict JSON object in, JSON out.
func post[Q, A any](s *Server, operation func(context.Context, store.Request, Q) (A, error)) http.HandlerFunc {
	return postUpTo(s, s.cfg.BodyLimit, operation)
}

// postUpTo is post with a bound on the body of its own.
func postUpTo[Q, A any](s *Server, limit int64, operation func(context.Context, store.Request, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, ok := s.begin(w, r, http.MethodPost)
		if !ok {
			return
		}
		body, err := readBody(w, r, limit)
		if err != nil {
			s.sendFailure(w, request, err)
			return
		}
		defer clear(body)
		var query Q
		if err := decode(body, &query, true); err != nil {
			s.sendFailure(w, request, err)
			return
		}
		answer, err := operation(r.Context(), request, query)
		if err != nil {
			s.sendFailure(w, request, err)
			return
		}
		s.stamp(w, request)
		send(w, http.StatusOK, answer)
	}
}

func (s *Server) get(operation func(context.Context, store.Request) (int, any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, ok := s.begin(w, r, http.MethodGet)
		if !ok {
			return
		}
		status, answer, err := operation(r.Context(), request)
		if err != nil {
			s.sendFailure(w, request, err)
			return
		}
		retryAfter(w, status)
		s.stamp(w, request)
		send(w, status, answer)
	}
}

func changed(c store.Changed, err error) (client.ChangeAnswer, error) {
	return client.ChangeAnswer{Version: c.Version, Versions: c.Versions, Index: c.Index}, err
}

func operations(list []client.Operation) []store.Op {
	if len(list) > store.MaxOperations { // the door refuses it: one more is enough to see that
		list = list[:store.MaxOperations+1]
	}
	ops := make([]store.Op, len(list))
	for i, o := range list {
		ops[i] = store.Op{Kind: store.OpKind(o.Op), Path: o.Path, Values: o.Values, Versions: o.Versions, Expect: o.ExpectedVersion}
	}
	return ops
}

func metadataAnswer(m store.Metadata) client.MetadataAnswer {
	answer := client.MetadataAnswer{CurrentVersion: m.Current, OldestVersion: m.Oldest, Created: m.Created, Updated: m.Updated,
		MaxVersions: m.MaxVersions, Versions: make([]client.VersionAnswer, len(m.Versions)), Index: m.Index}
	for i, v := range m.Versions {
		answer.Versions[i] = client.VersionAnswer{Version: v.Version, Created: v.Created, Destroyed: v.Destroyed}
		if !v.Deleted.IsZero() {
			deleted := v.Deleted
			answer.Versions[i].Deleted = &deleted
		}
	}
	return answer
}

func keysAnswer(k store.KeyStatus) client.KeysAnswer {
	answer := client.KeysAnswer{Epochs: make([]client.KeyEpoch, len(k.Epochs)), Stale: k.Stale, Records: k.Records,
		ShareSet: (*client.ShareSet)(k.ShareSet), Pending: (*client.ShareSet)(k.Pending), Inherited: k.Inherited}
	for i, e := range k.Epochs {
		answer.Epochs[i] = client.KeyEpoch{Purpose: e.Purpose, ID: e.ID, Status: e.Status, Created: e.Created, Records: e.Records}
	}
	return answer
}

func settingsAnswer(s store.Settings) client.Settings {
	return client.Settings{MaxVersions: s.MaxVersions, StateLimitBytes: s.StateLimitBytes, WireRecovery: s.WireRecovery, IndexReads: s.IndexReads, Index: s.Index,
		ArchiveSnapshotSeconds: s.ArchiveSnapshotSeconds, ArchiveDrillSeconds: s.ArchiveDrillSeconds, Retention: client.Retention(s.Retention)}
}

func policyAnswer(p secret.Policy) client.Policy {
	created, updated := p.CreatedAt, p.UpdatedAt
	return client.Policy{Name: p.Name, SPIFFEID: p.SPIFFEID, Path: p.Path, Permissions: p.Permissions.Names(), Created: &created, Updated: &updated}
}
